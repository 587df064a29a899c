-- The record of requests to clouds.

CREATE FUNCTION vestry.record_egress_v1(p_backend text, p_bytes bigint, p_jobs uuid[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE v_id bigint;
BEGIN
  IF coalesce(cardinality(p_jobs), 0) = 0 OR EXISTS (
       SELECT FROM unnest(p_jobs) u(id) LEFT JOIN jobs j ON j.id = u.id
       WHERE (j.privacy = 'shareable' AND j.pool = 'cloud') IS NOT TRUE) THEN
    RAISE EXCEPTION 'a cloud may not be called for these jobs' USING ERRCODE = 'VY007';
  END IF;
  IF NOT EXISTS (SELECT FROM jobs j WHERE j.id = ANY (p_jobs) AND j.state = 'running') THEN
    RAISE EXCEPTION 'no job of the request is running any more' USING ERRCODE = 'VY008';
  END IF;
  INSERT INTO egress (privacy, locality, backend, bytes, job_ids)
  SELECT max(j.privacy), 'cloud', p_backend, p_bytes, p_jobs FROM jobs j WHERE j.id = ANY (p_jobs)
  RETURNING id INTO v_id;
  RETURN v_id;
END $$;
COMMENT ON FUNCTION vestry.record_egress_v1 IS
  'Record a request to a cloud before it is sent, for running jobs. Time and privacy come from the database. '
  'VY007: a cloud may not see one of the jobs. VY008: none of them is running any more. In both cases '
  'nothing may be sent.';
