CREATE FUNCTION vestry.cancel_jobs_v1(p_ids uuid[]) RETURNS TABLE (job_id uuid, state text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE v_all uuid[];
BEGIN
  PERFORM vestry.lock_roots_v1(p_ids);
  v_all := ARRAY(
    WITH RECURSIVE flow AS (
      SELECT j.id, j.root_id FROM jobs j WHERE j.id = ANY (p_ids)
      UNION
      SELECT c.id, c.root_id FROM jobs c JOIN flow f ON f.root_id IS NOT NULL AND c.parent_id = f.id)
    SELECT f.id FROM flow f);
  PERFORM 1 FROM jobs j WHERE j.id = ANY (v_all) ORDER BY j.id FOR UPDATE;
  UPDATE jobs j
  SET state = 'cancelled', start_tag = NULL, lease_id = NULL, finished_at = vestry.clock(),
      error_code = 'cancelled', error_message = 'cancelled by request'
  WHERE j.id = ANY (v_all) AND j.state IN ('waiting', 'queued', 'running');
  DELETE FROM private_payloads p USING jobs j
  WHERE p.job_id = j.id AND j.id = ANY (v_all) AND j.state = 'cancelled';
  DELETE FROM private_blobs p USING jobs j
  WHERE p.job_id = j.id AND j.id = ANY (v_all) AND j.state = 'cancelled';
  DELETE FROM shareable_payloads p USING jobs j
  WHERE p.job_id = j.id AND j.id = ANY (v_all) AND j.state = 'cancelled' AND NOT j.keep_payload;
  DELETE FROM shareable_blobs p USING jobs j
  WHERE p.job_id = j.id AND j.id = ANY (v_all) AND j.state = 'cancelled' AND NOT j.keep_payload;
  PERFORM pg_notify('vestry_done', j.id::text) FROM jobs j
  WHERE j.id = ANY (v_all) AND j.state = 'cancelled' AND j.latency = 'interactive';
  RETURN QUERY SELECT j.id, j.state FROM jobs j WHERE j.id = ANY (p_ids);
END $$;
COMMENT ON FUNCTION vestry.cancel_jobs_v1 IS
  'Cancel jobs and all that follow them in their flows. Running jobs lose their lease, so that their '
  'attempts can no longer finish.';
