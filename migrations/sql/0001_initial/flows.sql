-- Flows: jobs that wait for another job, their parent.

-- Queue the children of a job that succeeded; end those of a job that ended otherwise. A trigger, so that
-- every way of ending a job is covered. Ending children fires it for their children.
CREATE FUNCTION vestry.advance_flow() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE v_now timestamptz := vestry.clock(); v_notified integer;
BEGIN
  IF NEW.state = 'succeeded' THEN
    WITH released AS (
      UPDATE jobs c
      SET state = 'queued', pool = p.pool, run_at = greatest(c.run_at, v_now), hinted_at = NULL,
          start_tag = CASE WHEN c.run_at <= v_now THEN
            vestry.next_start_tag_v1(c.privacy || '.' || c.latency || '.' || p.pool, c.owner) END
      FROM (SELECT x.id, vestry.route_v1(x.kind, x.task, x.privacy, x.latency, x.quality, x.tier) AS pool
            FROM jobs x WHERE x.parent_id = NEW.id AND x.state = 'waiting') p
      WHERE c.id = p.id AND c.state = 'waiting'
      RETURNING c.lane, c.latency)
    SELECT count(n.sent) INTO v_notified
    FROM (SELECT pg_notify('vestry_lane', r.lane) AS sent FROM released r
          WHERE r.latency = 'interactive' GROUP BY r.lane) n;
    RETURN NULL;
  END IF;
  UPDATE jobs c
  SET state = CASE NEW.state WHEN 'cancelled' THEN 'cancelled' WHEN 'expired' THEN 'expired' ELSE 'dead' END,
      finished_at = v_now,
      error_code = CASE NEW.state WHEN 'cancelled' THEN 'cancelled' WHEN 'expired' THEN 'expired'
                   ELSE 'parent_failed' END,
      error_message = 'the job that it waited for ended ' || NEW.state
  WHERE c.parent_id = NEW.id AND c.state = 'waiting';
  -- A dead child may be replayed together with its parent; the payloads of other children are deleted.
  DELETE FROM private_payloads p USING jobs c
  WHERE c.parent_id = NEW.id AND c.finished_at = v_now AND c.state <> 'dead' AND p.job_id = c.id;
  PERFORM pg_notify('vestry_done', c.id::text) FROM jobs c
  WHERE c.parent_id = NEW.id AND c.finished_at = v_now AND c.latency = 'interactive';
  RETURN NULL;
END $$;

CREATE TRIGGER jobs_flow AFTER UPDATE OF state ON vestry.jobs FOR EACH ROW
WHEN (NEW.root_id IS NOT NULL AND NEW.finished_at IS NOT NULL AND OLD.finished_at IS NULL)
EXECUTE FUNCTION vestry.advance_flow();

CREATE FUNCTION vestry.lock_roots_v1(p_ids uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
BEGIN
  PERFORM 1 FROM jobs r
  WHERE r.id IN (SELECT j.root_id FROM jobs j WHERE j.id = ANY (p_ids) AND j.root_id IS NOT NULL)
  ORDER BY r.id FOR UPDATE;
END $$;
COMMENT ON FUNCTION vestry.lock_roots_v1 IS
  'Lock the root jobs of flows. Finish and cancel both lock the root before any other job of the flow, '
  'which serialises them.';

CREATE FUNCTION vestry.upstream_v1(p_ids uuid[]) RETURNS TABLE (job_id uuid, before uuid, distance integer)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
  WITH RECURSIVE up AS (
    SELECT j.id AS job_id, j.parent_id AS before, 1 AS distance
    FROM vestry.jobs j WHERE j.id = ANY (p_ids) AND j.parent_id IS NOT NULL
    UNION ALL
    SELECT u.job_id, j.parent_id, u.distance + 1
    FROM up u JOIN vestry.jobs j ON j.id = u.before WHERE j.parent_id IS NOT NULL)
  SELECT up.job_id, up.before, up.distance FROM up
$$;
COMMENT ON FUNCTION vestry.upstream_v1 IS
  'The jobs before each of these in its flow, nearest first. A flow crosses pools and a cloud worker sees '
  'only its own pool''s jobs, hence SECURITY DEFINER; it returns nothing but ids.';
