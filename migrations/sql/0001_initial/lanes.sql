-- The lanes: privacy x latency x pool, without private x cloud. vestry/lanes.py lists the same.
INSERT INTO vestry.lanes (lane, privacy, latency, pool)
SELECT concat_ws('.', p, l, o), p, l, o
FROM unnest(ARRAY['private', 'shareable']) p, unnest(ARRAY['interactive', 'bulk']) l,
     unnest(ARRAY['gpu', 'cpu', 'cloud']) o
WHERE NOT (p = 'private' AND o = 'cloud');

CREATE FUNCTION vestry.pause_lane_v1(p_lane text, p_paused boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
BEGIN
  UPDATE lanes l SET paused_at = CASE WHEN p_paused THEN coalesce(l.paused_at, vestry.clock()) END
  WHERE l.lane = p_lane;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'unknown lane' USING ERRCODE = 'VY003';
  END IF;
  PERFORM pg_notify('vestry_lane', p_lane);
  RETURN p_paused;
END $$;
COMMENT ON FUNCTION vestry.pause_lane_v1 IS
  'Pause or resume a lane. Running jobs go on; the lane''s jobs are not claimed while it is paused.';
