-- Owners' data keys and the rotation of the key-encryption keys that wrap them, under load.

CREATE FUNCTION vestry.ensure_owner_key_v1(
  p_owner text, p_key_id uuid, p_wrapped bytea, p_kek_id text
) RETURNS TABLE (key_id uuid, wrapped bytea, kek_id text, fresh boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
BEGIN
  INSERT INTO owners (owner) VALUES (p_owner) ON CONFLICT DO NOTHING;
  PERFORM 1 FROM owners o WHERE o.owner = p_owner AND o.forgotten_at IS NOT NULL;
  IF FOUND THEN
    RAISE EXCEPTION 'this owner was forgotten' USING ERRCODE = 'VY004';
  END IF;
  INSERT INTO owner_keys (key_id, owner, wrapped, kek_id)
  VALUES (p_key_id, p_owner, p_wrapped, p_kek_id) ON CONFLICT DO NOTHING;
  RETURN QUERY SELECT k.key_id, k.wrapped, k.kek_id,
                      k.created_xid IS NOT DISTINCT FROM pg_current_xact_id_if_assigned()
               FROM owner_keys k WHERE k.owner = p_owner;
END $$;
COMMENT ON FUNCTION vestry.ensure_owner_key_v1 IS
  'Store an owner''s wrapped data key unless there is one; returns the stored key. fresh: the calling '
  'transaction created the row, so the key must not be cached before it commits.';

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
COMMENT ON FUNCTION vestry.rewrap_owner_keys_v1 IS
  'Replace wrapped data keys by the same keys wrapped anew. A row that changed since it was read, or was '
  'deleted with its owner, is skipped. Returns how many were replaced.';

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
COMMENT ON FUNCTION vestry.retire_key_v1 IS
  'Retire a key-encryption key if it wraps no data key; from then on it may wrap none. Waits for '
  'transactions that are storing a data key wrapped with it. Returns how many data keys it still wraps.';

-- Storing a wrapped key locks the row of its key-encryption key, which is then current (a transaction with
-- one snapshot fails instead): a key ring from before the last rotation is refused.
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
