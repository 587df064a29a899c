-- What all workers together know of a backend: the circuit breaker. No row, or no away_until: closed.
-- away_until ahead: open. Behind: half-open, and one caller at a time may probe it.
CREATE TABLE vestry.backend_health (
  backend       text PRIMARY KEY,
  failures      integer NOT NULL DEFAULT 0,
  openings      integer NOT NULL DEFAULT 0,
  reason        text,
  away_until    timestamptz,
  probing_until timestamptz,
  changed_at    timestamptz NOT NULL DEFAULT vestry.clock()
);

-- A call failed. The third failure in a row opens the breaker, for twice as long each time it opens
-- again without a success between; a backend that says when to come back opens it at once, until then.
CREATE FUNCTION vestry.backend_failed_v1(
  p_backend text, p_reason text, p_retry_after_s double precision,
  p_threshold integer, p_cooldown_s double precision, p_longest_s double precision
) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
  INSERT INTO vestry.backend_health AS h (backend, failures, openings, reason, away_until, changed_at)
  SELECT p_backend, 1, (p_retry_after_s IS NOT NULL OR p_threshold <= 1)::int, p_reason,
         CASE WHEN p_retry_after_s IS NOT NULL THEN now.t + make_interval(secs => p_retry_after_s)
              WHEN p_threshold <= 1 THEN now.t + make_interval(secs => p_cooldown_s) END, now.t
  FROM (SELECT vestry.clock() AS t) now
  ON CONFLICT (backend) DO UPDATE
  SET failures = h.failures + 1, probing_until = NULL, reason = excluded.reason,
      changed_at = excluded.changed_at,
      openings = h.openings + (p_retry_after_s IS NULL AND h.failures + 1 >= p_threshold
                               AND (h.away_until IS NULL OR h.away_until <= excluded.changed_at))::int,
      away_until = CASE
        WHEN p_retry_after_s IS NOT NULL
        THEN greatest(h.away_until, excluded.changed_at + make_interval(secs => p_retry_after_s))
        WHEN h.failures + 1 < p_threshold THEN h.away_until
        -- Failures of calls that were under way when it opened make it no longer.
        WHEN h.away_until > excluded.changed_at THEN h.away_until
        ELSE excluded.changed_at + make_interval(
          secs => least(p_longest_s, p_cooldown_s * 2 ^ least(h.openings, 20))) END
$$;

-- A call went well: the breaker closes.
CREATE FUNCTION vestry.backend_succeeded_v1(p_backend text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
  UPDATE vestry.backend_health
  SET failures = 0, openings = 0, reason = NULL, away_until = NULL, probing_until = NULL,
      changed_at = vestry.clock()
  WHERE backend = p_backend AND (failures > 0 OR away_until IS NOT NULL)
$$;

-- A probe that came to nothing before it told anything of the backend.
CREATE FUNCTION vestry.backend_released_v1(p_backend text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
  UPDATE vestry.backend_health SET probing_until = NULL, changed_at = vestry.clock()
  WHERE backend = p_backend AND probing_until IS NOT NULL
$$;

-- Take the one probe of a half-open breaker; false where another has it.
CREATE FUNCTION vestry.backend_probe_v1(p_backend text, p_for_s double precision) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
  WITH taken AS (
    UPDATE vestry.backend_health h
    SET probing_until = now.t + make_interval(secs => p_for_s), changed_at = now.t
    FROM (SELECT vestry.clock() AS t) now
    WHERE h.backend = p_backend AND h.away_until <= now.t
      AND (h.probing_until IS NULL OR h.probing_until <= now.t)
    RETURNING 1)
  SELECT EXISTS (SELECT FROM taken)
$$;

-- One row a call that was let through to a backend with a limit, at the moment it may be made.
CREATE TABLE vestry.rate_grants (
  backend text NOT NULL,
  at      timestamptz NOT NULL
);
CREATE INDEX rate_grants_window ON vestry.rate_grants (backend, at);

-- Ask for a call within a limit of p_limit in any p_window_s seconds. Seconds to wait before making it,
-- which is then reserved; or minus those seconds where it is longer than p_patience_s, and nothing is.
CREATE FUNCTION vestry.rate_take_v1(
  p_backend text, p_limit integer, p_window_s double precision, p_patience_s double precision
) RETURNS double precision
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE v_now timestamptz; v_at timestamptz;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('vestry.rate.' || p_backend, 0));
  v_now := vestry.clock();
  DELETE FROM rate_grants g
  WHERE g.backend = p_backend AND g.at < v_now - make_interval(secs => p_window_s);
  SELECT greatest(v_now, g.at + make_interval(secs => p_window_s)) INTO v_at
  FROM rate_grants g WHERE g.backend = p_backend ORDER BY g.at DESC OFFSET p_limit - 1 LIMIT 1;
  v_at := coalesce(v_at, v_now);
  IF v_at > v_now + make_interval(secs => p_patience_s) THEN
    RETURN -extract(epoch FROM v_at - v_now);
  END IF;
  INSERT INTO rate_grants (backend, at) VALUES (p_backend, v_at);
  RETURN extract(epoch FROM v_at - v_now);
END $$;

-- What clouds cost, a day and backend.
CREATE TABLE vestry.spending (
  day           date NOT NULL,
  backend       text NOT NULL,
  calls         bigint NOT NULL DEFAULT 0,
  input_tokens  bigint NOT NULL DEFAULT 0,
  output_tokens bigint NOT NULL DEFAULT 0,
  cost          numeric NOT NULL DEFAULT 0,
  PRIMARY KEY (day, backend)
);
