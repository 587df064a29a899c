-- Rotation of key-encryption keys, while everybody goes on working.

-- Every key-encryption key that ever wrapped a data key here; a retired one may wrap none any more.
CREATE TABLE vestry.wrapping_keys (
  kek_id     text PRIMARY KEY,
  created_at timestamptz NOT NULL DEFAULT vestry.clock(),
  retired_at timestamptz
);
INSERT INTO vestry.wrapping_keys (kek_id, created_at)
SELECT k.kek_id, min(k.created_at) FROM vestry.owner_keys k GROUP BY k.kek_id;

-- Put owners' data keys, wrapped anew, in the place of those that were read. One that changed meanwhile,
-- or is gone with its owner, is left as it is. Returns how many were replaced.
CREATE FUNCTION vestry.rewrap_owner_keys_v1(
  p_key_ids uuid[], p_read bytea[], p_wrapped bytea[], p_kek_id text
) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE v_count integer;
BEGIN
  IF EXISTS (SELECT FROM unnest(ARRAY[cardinality(p_read), cardinality(p_wrapped)]) n
             WHERE n IS DISTINCT FROM cardinality(p_key_ids)) OR p_kek_id IS NULL THEN
    RAISE EXCEPTION 'the arrays do not describe the same keys' USING ERRCODE = 'VY003';
  END IF;
  PERFORM 1 FROM owner_keys k WHERE k.key_id = ANY (p_key_ids) ORDER BY k.key_id FOR UPDATE;
  UPDATE owner_keys k SET wrapped = u.wrapped, kek_id = p_kek_id
  FROM unnest(p_key_ids, p_read, p_wrapped) u(key_id, read, wrapped)
  WHERE k.key_id = u.key_id AND k.wrapped = u.read;
  GET DIAGNOSTICS v_count = ROW_COUNT;
  RETURN v_count;
END $$;

-- A key-encryption key wraps nothing any more, and may not again. Transactions that are just storing a
-- data key wrapped with it are waited for. Returns how many it still wraps; it is retired where none.
CREATE FUNCTION vestry.retire_key_v1(p_kek_id text) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE v_wrapped bigint;
BEGIN
  INSERT INTO wrapping_keys (kek_id) VALUES (p_kek_id) ON CONFLICT DO NOTHING;
  PERFORM 1 FROM wrapping_keys w WHERE w.kek_id = p_kek_id FOR UPDATE;
  SELECT count(*) INTO v_wrapped FROM owner_keys k WHERE k.kek_id = p_kek_id;
  UPDATE wrapping_keys w SET retired_at = vestry.clock()
  WHERE w.kek_id = p_kek_id AND w.retired_at IS NULL AND v_wrapped = 0;
  RETURN v_wrapped;
END $$;

-- Whoever stores a wrapped key holds on to the key-encryption key's row, read as it is by then (or, in a
-- transaction of one snapshot, is refused): a key ring from before the last rotation is told so.
CREATE FUNCTION vestry.guard_key() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE v_retired timestamptz;
BEGIN
  INSERT INTO wrapping_keys (kek_id) VALUES (NEW.kek_id) ON CONFLICT DO NOTHING;
  SELECT w.retired_at INTO v_retired FROM wrapping_keys w WHERE w.kek_id = NEW.kek_id FOR SHARE;
  IF v_retired IS NOT NULL THEN
    RAISE EXCEPTION 'the key ring is older than the last rotation of its keys' USING ERRCODE = 'VY006';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER owner_keys_current BEFORE INSERT OR UPDATE OF kek_id ON vestry.owner_keys
FOR EACH ROW EXECUTE FUNCTION vestry.guard_key();
