-- Vector spaces and the deletion of documents.

CREATE FUNCTION vestry.ensure_space_v1(
  p_name text, p_model text, p_revision text, p_dimension integer, p_query_prefix text,
  p_document_prefix text, p_normalised boolean, p_precision text, p_library text
) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, public, pg_temp
AS $$
DECLARE v_space spaces%ROWTYPE; v_part text;
BEGIN
  SELECT * INTO v_space FROM spaces WHERE name = p_name;
  IF NOT FOUND THEN
    PERFORM pg_advisory_xact_lock(hashtextextended('vestry.spaces', 0));
    SELECT * INTO v_space FROM spaces WHERE name = p_name;
  END IF;
  IF v_space.id IS NULL THEN
    INSERT INTO spaces (name, model, revision, dimension, query_prefix, document_prefix,
                        normalised, precision, library)
    VALUES (p_name, p_model, p_revision, p_dimension, p_query_prefix, p_document_prefix,
            p_normalised, p_precision, p_library)
    RETURNING * INTO v_space;
    v_part := 'shareable_embeddings_s' || v_space.id;
    EXECUTE format(
      'CREATE TABLE vestry.%I (LIKE vestry.shareable_embeddings INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
      v_part);
    EXECUTE format(
      'ALTER TABLE vestry.shareable_embeddings ATTACH PARTITION vestry.%I FOR VALUES IN (%s)',
      v_part, v_space.id);
    EXECUTE format(
      'CREATE INDEX %I ON vestry.%I USING hnsw ((vector::public.halfvec(%s)) public.halfvec_cosine_ops)',
      v_part || '_hnsw', v_part, p_dimension);
  ELSIF v_space.dimension <> p_dimension OR v_space.model <> p_model
        OR v_space.revision <> p_revision THEN
    RAISE EXCEPTION 'space % exists with another model, revision or dimension', p_name
      USING ERRCODE = 'VY003';
  END IF;
  RETURN v_space.id;
END $$;
COMMENT ON FUNCTION vestry.ensure_space_v1 IS
  'Id of a vector space, created with its partition and HNSW index if it does not exist. The same name with '
  'another model, revision or dimension is an error.';

CREATE FUNCTION vestry.delete_documents_v1(
  p_owner text, p_privacy text, p_source text, p_external_hashes bytea[]
) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE v_ids uuid[];
BEGIN
  IF p_privacy IS NULL OR p_privacy NOT IN ('private', 'shareable') THEN
    RAISE EXCEPTION 'privacy must be private or shareable' USING ERRCODE = 'VY003';
  END IF;
  -- Three statements, not one: the lock may have waited for an attempt that stored chunks, and only a
  -- statement that starts after it sees them.
  EXECUTE format($q$
    SELECT array_agg(id) FROM (
      SELECT id FROM vestry.%I
      WHERE owner = $1 AND source = $2 AND external_hash = ANY ($3) AND NOT deleted
      ORDER BY owner, source, external_hash FOR UPDATE) locked $q$, p_privacy || '_documents')
  INTO v_ids USING p_owner, p_source, p_external_hashes;
  EXECUTE format($q$
    UPDATE vestry.%I
    SET generation = generation + 1, deleted = true, indexed_generation = NULL,
        indexed_hash = NULL, indexed_space = NULL, detail = NULL, updated_at = vestry.clock()
    WHERE id = ANY ($1) $q$, p_privacy || '_documents') USING v_ids;
  EXECUTE format('DELETE FROM vestry.%I WHERE document_id = ANY ($1)', p_privacy || '_chunks')
  USING v_ids;
  RETURN coalesce(cardinality(v_ids), 0);
END $$;
COMMENT ON FUNCTION vestry.delete_documents_v1 IS
  'Delete documents, also while they are being embedded: their generation advances, so that a running '
  'attempt may no longer write. Returns how many existed.';
