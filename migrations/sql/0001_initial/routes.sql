-- Which pool serves a request, and moving jobs to the lane of another pool.

CREATE FUNCTION vestry.route_v1(
  p_kind text, p_task text, p_privacy text, p_latency text, p_quality text, p_tier text
) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
  SELECT coalesce(
    (SELECT r.pool FROM vestry.routes r
     WHERE r.kind = p_kind AND r.task IN ('', coalesce(p_task, '')) AND r.privacy = p_privacy
       AND r.latency = p_latency AND r.quality = coalesce(p_quality, 'adequate')
       AND r.tier IN ('', coalesce(p_tier, ''))
     ORDER BY r.task DESC, r.tier DESC LIMIT 1),
    CASE p_kind WHEN 'ocr' THEN 'cpu' ELSE 'gpu' END)
$$;
COMMENT ON FUNCTION vestry.route_v1 IS
  'The pool for a request: that of the published route, else a local pool.';

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
        tried_models = u.tried, quarantined = false,
        start_tag = (SELECT l.virtual_time FROM lanes l
                     WHERE l.lane = j.privacy || '.' || j.latency || '.' || u.pool)
    FROM unnest(p_ids, p_pools, p_tried) u(id, pool, tried)
    WHERE j.id = u.id AND j.lease_id = p_token AND j.state = 'running'
    RETURNING j.lane, j.latency)
  SELECT count(*), count(notified) INTO v_moved
  FROM moved m LEFT JOIN LATERAL (
    SELECT pg_notify('vestry_lane', m.lane) AS notified WHERE m.latency = 'interactive') n ON true;
  RETURN v_moved;
END $$;
COMMENT ON FUNCTION vestry.reroute_jobs_v1 IS
  'Move running jobs of the caller''s lease to the lane of another pool. The attempt is not counted.';

CREATE FUNCTION vestry.move_jobs_v1(
  p_lane text, p_kind text, p_after_start_tag bigint, p_after_id uuid, p_limit integer
) RETURNS TABLE (moved integer, last_start_tag bigint, last_id uuid)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
BEGIN
  RETURN QUERY
  WITH page AS MATERIALIZED (
    SELECT j.id, j.start_tag, j.pool, j.privacy, j.latency, j.model,
           vestry.route_v1(j.kind, j.task, j.privacy, j.latency, j.quality, j.tier) AS route
    FROM jobs j
    WHERE j.lane = p_lane AND j.kind = p_kind AND j.state = 'queued' AND j.start_tag IS NOT NULL
      AND NOT j.quarantined AND (j.start_tag, j.id) > (p_after_start_tag, p_after_id)
    ORDER BY j.start_tag, j.id LIMIT p_limit),
  misplaced AS MATERIALIZED (
    SELECT j.id, s.route FROM jobs j JOIN page s ON s.id = j.id
    WHERE s.model IS NULL AND s.route <> s.pool AND j.state = 'queued'
    ORDER BY j.id FOR UPDATE OF j SKIP LOCKED),
  rerouted AS (
    UPDATE jobs j
    SET pool = w.route, hinted_at = NULL,
        start_tag = (SELECT l.virtual_time FROM lanes l
                     WHERE l.lane = j.privacy || '.' || j.latency || '.' || w.route)
    FROM misplaced w WHERE j.id = w.id AND j.state = 'queued'
    RETURNING j.lane, j.latency),
  notified AS MATERIALIZED (
    SELECT pg_notify('vestry_lane', r.lane) AS sent FROM rerouted r
    WHERE r.latency = 'interactive' GROUP BY r.lane)
  SELECT (SELECT count(*)::integer + 0 * (SELECT count(n.sent)::integer FROM notified n) FROM rerouted),
         e.start_tag, e.id
  FROM (SELECT 1) one LEFT JOIN LATERAL (
    SELECT s.start_tag, s.id FROM page s
    WHERE (SELECT count(*) FROM page) = p_limit ORDER BY s.start_tag DESC, s.id DESC LIMIT 1) e ON true;
END $$;
COMMENT ON FUNCTION vestry.move_jobs_v1 IS
  'Move queued jobs whose route changed to the pool of the new route: called by the dispatcher after it '
  'published routes, one page of a (lane, kind) queue at a time. Returns how many moved and the last '
  'position of the page, NULL at the end of the queue.';
