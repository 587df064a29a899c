-- What becomes of the jobs that wait on one that ended: released where it succeeded, else ended too.
-- A trigger, so that no way of ending a job can forget it; it calls itself for theirs.
CREATE FUNCTION vestry.carry_down() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE v_now timestamptz := vestry.clock(); v_told integer;
BEGIN
  IF NEW.state = 'succeeded' THEN
    WITH released AS (
      UPDATE jobs c
      SET state = 'queued', pool = p.pool, run_at = greatest(c.run_at, v_now), hinted_at = NULL,
          start_tag = CASE WHEN c.run_at <= v_now
                 THEN vestry.next_start_tag_v1(c.privacy || '.' || c.latency || '.' || p.pool, c.owner) END
      FROM (SELECT x.id, vestry.route_v1(x.kind, x.task, x.privacy, x.latency, x.quality, x.tier) AS pool
            FROM jobs x WHERE x.parent_id = NEW.id AND x.state = 'waiting') p
      WHERE c.id = p.id AND c.state = 'waiting'
      RETURNING c.lane, c.latency)
    SELECT count(t.told) INTO v_told
    FROM (SELECT pg_notify('vestry_lane', r.lane) AS told FROM released r
          WHERE r.latency = 'interactive' GROUP BY r.lane) t;
    RETURN NULL;
  END IF;
  UPDATE jobs c
  SET state = CASE NEW.state WHEN 'cancelled' THEN 'cancelled' WHEN 'expired' THEN 'expired' ELSE 'dead' END,
      finished_at = v_now,
      error_code = CASE NEW.state WHEN 'cancelled' THEN 'cancelled' WHEN 'expired' THEN 'expired'
                   ELSE 'parent_failed' END,
      error_message = 'the job that it waited for ended ' || NEW.state
  WHERE c.parent_id = NEW.id AND c.state = 'waiting';
  -- What died may be replayed, together with what it waited for; of the others nothing is kept.
  DELETE FROM private_payloads p USING jobs c
  WHERE c.parent_id = NEW.id AND c.finished_at = v_now AND c.state <> 'dead' AND p.job_id = c.id;
  PERFORM pg_notify('vestry_done', c.id::text) FROM jobs c
  WHERE c.parent_id = NEW.id AND c.finished_at = v_now AND c.latency = 'interactive';
  RETURN NULL;
END $$;

CREATE TRIGGER jobs_flow AFTER UPDATE OF state ON vestry.jobs FOR EACH ROW
WHEN (NEW.root_id IS NOT NULL AND NEW.finished_at IS NOT NULL AND OLD.finished_at IS NULL)
EXECUTE FUNCTION vestry.carry_down();

-- A flow's root row serialises finish against cancel: both lock it before any other of the flow.
CREATE FUNCTION vestry.lock_roots_v1(p_ids uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
BEGIN
  PERFORM 1 FROM jobs r
  WHERE r.id IN (SELECT j.root_id FROM jobs j WHERE j.id = ANY (p_ids) AND j.root_id IS NOT NULL)
  ORDER BY r.id FOR UPDATE;
END $$;

-- Cancel jobs wherever they are, with all that follows from them. Running ones lose their lease and so
-- their right to finish.
CREATE OR REPLACE FUNCTION vestry.cancel_jobs_v1(p_ids uuid[]) RETURNS TABLE (job_id uuid, state text)
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

-- What an attempt tried in one pool before the job went to another: model names, each with the reason why
-- it did not serve. Else the other pool would send the job back to it, and so for ever.
ALTER TABLE vestry.jobs ADD COLUMN tried_models jsonb;

-- A job under the caller's lease goes to another pool's lane, with its attempt given back.
CREATE FUNCTION vestry.reroute_jobs_v1(
  p_token uuid, p_ids uuid[], p_pools text[], p_tried jsonb[]
) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE v_moved integer;
BEGIN
  WITH moved AS (
    UPDATE jobs j
    SET state = 'queued', lease_id = NULL, attempt = j.attempt - 1, hinted_at = NULL, pool = u.pool,
        tried_models = u.tried, quarantined = false, start_tag = (SELECT l.virtual_time FROM lanes l
                                 WHERE l.lane = j.privacy || '.' || j.latency || '.' || u.pool)
    FROM unnest(p_ids, p_pools, p_tried) u(id, pool, tried)
    WHERE j.id = u.id AND j.lease_id = p_token AND j.state = 'running'
    RETURNING j.lane, j.latency)
  SELECT count(*), count(told) INTO v_moved
  FROM moved m LEFT JOIN LATERAL (
    SELECT pg_notify('vestry_lane', m.lane) AS told WHERE m.latency = 'interactive') t ON true;
  RETURN v_moved;
END $$;

-- Jobs in line that the routes send elsewhere now: called by the dispatcher after it published, for a
-- stretch of the line at a time. Returns how many moved, and where the stretch ended (NULL: at the end).
CREATE FUNCTION vestry.move_jobs_v1(
  p_lane text, p_kind text, p_after_start_tag bigint, p_after_id uuid, p_limit integer
) RETURNS TABLE (moved integer, last_start_tag bigint, last_id uuid)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
BEGIN
  RETURN QUERY
  WITH stretch AS MATERIALIZED (
    SELECT j.id, j.start_tag, j.pool, j.privacy, j.latency, j.model,
           vestry.route_v1(j.kind, j.task, j.privacy, j.latency, j.quality, j.tier) AS route
    FROM jobs j
    WHERE j.lane = p_lane AND j.kind = p_kind AND j.state = 'queued' AND j.start_tag IS NOT NULL
      AND NOT j.quarantined AND (j.start_tag, j.id) > (p_after_start_tag, p_after_id)
    ORDER BY j.start_tag, j.id LIMIT p_limit),
  wrong AS MATERIALIZED (
    SELECT j.id, s.route FROM jobs j JOIN stretch s ON s.id = j.id
    WHERE s.model IS NULL AND s.route <> s.pool AND j.state = 'queued'
    ORDER BY j.id FOR UPDATE OF j SKIP LOCKED),
  went AS (
    UPDATE jobs j
    SET pool = w.route, hinted_at = NULL,
        start_tag = (SELECT l.virtual_time FROM lanes l WHERE l.lane = j.privacy || '.' || j.latency || '.' || w.route)
    FROM wrong w WHERE j.id = w.id AND j.state = 'queued'
    RETURNING j.lane, j.latency),
  told AS MATERIALIZED (
    SELECT pg_notify('vestry_lane', w.lane) AS told FROM went w
    WHERE w.latency = 'interactive' GROUP BY w.lane)
  SELECT (SELECT count(*)::integer + 0 * (SELECT count(t.told)::integer FROM told t) FROM went),
         e.start_tag, e.id
  FROM (SELECT 1) one LEFT JOIN LATERAL (
    SELECT s.start_tag, s.id FROM stretch s
    WHERE (SELECT count(*) FROM stretch) = p_limit ORDER BY s.start_tag DESC, s.id DESC LIMIT 1) e ON true;
END $$;

-- The jobs before each of these in its flow, nearest first. A flow crosses pools, and a cloud worker sees
-- only its own pool's jobs: hence not under the caller's rights. It tells ids and nothing else.
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
