-- Forgetting an owner. owners.forgotten_at is the tombstone: after it, every enqueue and every finish for the
-- owner is refused. `vestry forget` calls, each step committed by itself and repeatable:
--   forget_owner_v1      sets the tombstone and deletes the data key
--   await_enqueues_v1    waits for transactions that enqueued before the tombstone
--   cancel_jobs_v1       page by page, until no job is left
--   forget_content_v1    page by page, until no content is left
-- No lock of one step is held in the next, so that the lock order holds.

-- An insert for an owner locks the owner's row until the end of its transaction. await_enqueues_v1 waits for
-- transactions that cannot see the tombstone yet. Above read committed the tombstone might never become
-- visible: there the stronger lock fails if the row changed since the snapshot.
CREATE FUNCTION vestry.guard_owners() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE v_forgotten boolean;
BEGIN
  IF current_setting('transaction_isolation') = 'read committed' THEN
    SELECT bool_or(l.forgotten) INTO v_forgotten FROM (
      SELECT o.forgotten_at IS NOT NULL AS forgotten FROM owners o
      WHERE o.owner IN (SELECT f.owner FROM fresh f) ORDER BY o.owner FOR KEY SHARE) l;
  ELSE
    SELECT bool_or(l.forgotten) INTO v_forgotten FROM (
      SELECT o.forgotten_at IS NOT NULL AS forgotten FROM owners o
      WHERE o.owner IN (SELECT f.owner FROM fresh f) ORDER BY o.owner FOR SHARE) l;
  END IF;
  IF v_forgotten THEN
    RAISE EXCEPTION 'this owner was forgotten' USING ERRCODE = 'VY004';
  END IF;
  RETURN NULL;
END $$;

CREATE TRIGGER jobs_owner AFTER INSERT ON vestry.jobs
REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION vestry.guard_owners();
CREATE TRIGGER owner_keys_owner AFTER INSERT ON vestry.owner_keys
REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION vestry.guard_owners();
CREATE TRIGGER private_blobs_owner AFTER INSERT ON vestry.private_blobs
REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION vestry.guard_owners();
CREATE TRIGGER shareable_blobs_owner AFTER INSERT ON vestry.shareable_blobs
REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION vestry.guard_owners();

CREATE FUNCTION vestry.active_owners_v1(p_owners text[]) RETURNS text[]
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
  SELECT ARRAY(SELECT u FROM unnest(p_owners) u
               WHERE NOT EXISTS (SELECT FROM vestry.owners o
                                 WHERE o.owner = u AND o.forgotten_at IS NOT NULL))
$$;
COMMENT ON FUNCTION vestry.active_owners_v1 IS
  'Those of the owners that are not forgotten. Workers cannot read the list of owners.';

CREATE FUNCTION vestry.forget_owner_v1(p_owner text, OUT forgotten_at timestamptz, OUT keys integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
BEGIN
  UPDATE owners o SET forgotten_at = coalesce(o.forgotten_at, vestry.clock()) WHERE o.owner = p_owner
  RETURNING o.forgotten_at INTO forget_owner_v1.forgotten_at;
  DELETE FROM owner_keys k WHERE k.owner = p_owner;
  GET DIAGNOSTICS keys = ROW_COUNT;
END $$;
COMMENT ON FUNCTION vestry.forget_owner_v1 IS
  'Set the tombstone and delete the owner''s data key. Does not wait for open transactions, since no key '
  'column of the owner''s row changes. NULL if there never was such an owner.';

CREATE FUNCTION vestry.await_enqueues_v1(p_owner text) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE v_keys integer;
BEGIN
  PERFORM 1 FROM owners o WHERE o.owner = p_owner FOR UPDATE;
  DELETE FROM owner_keys k WHERE k.owner = p_owner;
  GET DIAGNOSTICS v_keys = ROW_COUNT;
  RETURN v_keys;
END $$;
COMMENT ON FUNCTION vestry.await_enqueues_v1 IS
  'Wait for transactions that stored something for the owner before the tombstone, at most for the caller''s '
  'lock_timeout. Deletes a key that one of them stored.';

CREATE FUNCTION vestry.forget_content_v1(p_owner text, p_limit integer)
RETURNS TABLE (what text, gone bigint, more boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE
  v_privacy text; v_what text; v_ids uuid[]; v_gone bigint; v_chunks bigint; v_vectors bigint;
  v_more boolean := false;
BEGIN
  PERFORM 1 FROM owners o WHERE o.owner = p_owner AND o.forgotten_at IS NOT NULL;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'this owner is not being forgotten' USING ERRCODE = 'VY003';
  END IF;
  FOREACH v_privacy IN ARRAY ARRAY['private', 'shareable'] LOOP
    EXECUTE format($q$
      SELECT array_agg(id) FROM (
        SELECT id FROM vestry.%I WHERE owner = $1
        ORDER BY owner, source, external_hash LIMIT $2 FOR UPDATE) locked $q$, v_privacy || '_documents')
    INTO v_ids USING p_owner, p_limit;
    EXECUTE format($q$
      SELECT count(DISTINCT c.id), count(e.chunk_id) FROM vestry.%I c
      LEFT JOIN vestry.%I e ON e.chunk_id = c.id WHERE c.document_id = ANY ($1) $q$,
      v_privacy || '_chunks', v_privacy || '_embeddings') INTO v_chunks, v_vectors USING v_ids;
    EXECUTE format('DELETE FROM vestry.%I WHERE id = ANY ($1)', v_privacy || '_documents') USING v_ids;
    v_gone := coalesce(cardinality(v_ids), 0);
    v_more := v_more OR v_gone = p_limit;
    RETURN QUERY VALUES ('documents', v_gone, v_more), ('chunks', v_chunks, false),
                        ('vectors', v_vectors, false);
  END LOOP;
  IF v_more THEN RETURN; END IF;
  FOREACH v_what IN ARRAY ARRAY['payloads', 'results', 'blobs'] LOOP
    FOREACH v_privacy IN ARRAY ARRAY['private', 'shareable'] LOOP
      EXECUTE format('DELETE FROM vestry.%I WHERE owner = $1', v_privacy || '_' || v_what) USING p_owner;
      GET DIAGNOSTICS v_gone = ROW_COUNT;
      RETURN QUERY VALUES (v_what, v_gone, false);
    END LOOP;
  END LOOP;
  DELETE FROM idempotency_keys k WHERE k.owner = p_owner;
  GET DIAGNOSTICS v_gone = ROW_COUNT;
  RETURN QUERY VALUES ('idempotency_keys', v_gone, false);
END $$;
COMMENT ON FUNCTION vestry.forget_content_v1 IS
  'Delete content of a forgotten owner: up to p_limit documents of each privacy class with their chunks and '
  'vectors, then, if no document remains, everything else. One row per kind of content; if a row has more, '
  'call again.';
