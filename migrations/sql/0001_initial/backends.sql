-- Circuit breakers and rate limits of backends, shared by all workers.

CREATE FUNCTION vestry.backend_failed_v1(
  p_backend text, p_reason text, p_retry_after_s double precision,
  p_threshold integer, p_cooldown_s double precision, p_max_cooldown_s double precision
) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
  INSERT INTO vestry.backend_health AS h (backend, failures, openings, reason, open_until, changed_at)
  SELECT p_backend, 1, (p_retry_after_s IS NOT NULL OR p_threshold <= 1)::int, p_reason,
         CASE WHEN p_retry_after_s IS NOT NULL THEN now.t + make_interval(secs => p_retry_after_s)
              WHEN p_threshold <= 1 THEN now.t + make_interval(secs => p_cooldown_s) END, now.t
  FROM (SELECT vestry.clock() AS t) now
  ON CONFLICT (backend) DO UPDATE
  SET failures = h.failures + 1, probing_until = NULL, reason = excluded.reason,
      changed_at = excluded.changed_at,
      openings = h.openings + (p_retry_after_s IS NULL AND h.failures + 1 >= p_threshold
                               AND (h.open_until IS NULL OR h.open_until <= excluded.changed_at))::int,
      open_until = CASE
        WHEN p_retry_after_s IS NOT NULL
        THEN greatest(h.open_until, excluded.changed_at + make_interval(secs => p_retry_after_s))
        WHEN h.failures + 1 < p_threshold THEN h.open_until
        -- Calls that were running when the breaker opened do not prolong it.
        WHEN h.open_until > excluded.changed_at THEN h.open_until
        ELSE excluded.changed_at + make_interval(
          secs => least(p_max_cooldown_s, p_cooldown_s * 2 ^ least(h.openings, 20))) END
$$;
COMMENT ON FUNCTION vestry.backend_failed_v1 IS
  'Record a failed call. p_threshold failures in a row open the breaker for p_cooldown_s, doubled each time it '
  'opens again without a success between, at most p_max_cooldown_s. p_retry_after_s, from the backend, opens '
  'it at once for that long.';

CREATE FUNCTION vestry.backend_succeeded_v1(p_backend text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
  UPDATE vestry.backend_health
  SET failures = 0, openings = 0, reason = NULL, open_until = NULL, probing_until = NULL,
      changed_at = vestry.clock()
  WHERE backend = p_backend AND (failures > 0 OR open_until IS NOT NULL)
$$;
COMMENT ON FUNCTION vestry.backend_succeeded_v1 IS
  'Record a successful call: close the breaker.';

CREATE FUNCTION vestry.backend_released_v1(p_backend text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
  UPDATE vestry.backend_health SET probing_until = NULL, changed_at = vestry.clock()
  WHERE backend = p_backend AND probing_until IS NOT NULL
$$;
COMMENT ON FUNCTION vestry.backend_released_v1 IS
  'Release a half-open probe that had no result.';

CREATE FUNCTION vestry.backend_probe_v1(p_backend text, p_for_s double precision) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
  WITH taken AS (
    UPDATE vestry.backend_health h
    SET probing_until = now.t + make_interval(secs => p_for_s), changed_at = now.t
    FROM (SELECT vestry.clock() AS t) now
    WHERE h.backend = p_backend AND h.open_until <= now.t
      AND (h.probing_until IS NULL OR h.probing_until <= now.t)
    RETURNING 1)
  SELECT EXISTS (SELECT FROM taken)
$$;
COMMENT ON FUNCTION vestry.backend_probe_v1 IS
  'Take the one probe of a half-open breaker; false if another caller has it.';

CREATE FUNCTION vestry.breakers_v1() RETURNS TABLE (
  backend text, state text, failures integer, reason text, open_s double precision, probing boolean)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
  SELECT h.backend,
         CASE WHEN h.open_until IS NULL THEN 'closed' WHEN h.open_until > now.t THEN 'open'
              ELSE 'half_open' END,
         h.failures, h.reason,
         CASE WHEN h.open_until > now.t THEN extract(epoch FROM h.open_until - now.t) END,
         coalesce(h.probing_until > now.t, false)
  FROM vestry.backend_health h, (SELECT vestry.clock() AS t OFFSET 0) now
  WHERE h.failures > 0 OR h.open_until IS NOT NULL ORDER BY h.backend
$$;
COMMENT ON FUNCTION vestry.breakers_v1 IS
  'Breakers of the backends that failed recently; all others are closed. state: ''closed'', '
  '''open'' or ''half_open''. open_s: seconds until an open breaker is half-open. probing: a caller has '
  'the probe.';

CREATE FUNCTION vestry.acquire_permit_v1(
  p_backend text, p_limit integer, p_window_s double precision, p_max_wait_s double precision
) RETURNS double precision
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE v_now timestamptz; v_at timestamptz;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('vestry.rate.' || p_backend, 0));
  v_now := vestry.clock();
  DELETE FROM rate_permits g
  WHERE g.backend = p_backend AND g.at < v_now - make_interval(secs => p_window_s);
  SELECT greatest(v_now, g.at + make_interval(secs => p_window_s)) INTO v_at
  FROM rate_permits g WHERE g.backend = p_backend ORDER BY g.at DESC OFFSET p_limit - 1 LIMIT 1;
  v_at := coalesce(v_at, v_now);
  IF v_at > v_now + make_interval(secs => p_max_wait_s) THEN
    RETURN -extract(epoch FROM v_at - v_now);
  END IF;
  INSERT INTO rate_permits (backend, at) VALUES (p_backend, v_at);
  RETURN extract(epoch FROM v_at - v_now);
END $$;
COMMENT ON FUNCTION vestry.acquire_permit_v1 IS
  'Reserve a call under a limit of p_limit in any p_window_s seconds. Returns the seconds to wait before the '
  'call; if that exceeds p_max_wait_s nothing is reserved and the seconds are negative.';
