-- The producers' contract. A breaking change is a v2 beside these.
-- Errors a caller can act on carry SQLSTATE VYxxx; vestry/errors.py names them.

-- Enqueue jobs of one owner in the caller's transaction. Arrays run in parallel, one element a job;
-- p_doc_jobs is the 1-based place of a document's job. Returns one row a job: 'created', 'existing'
-- (same idempotency key, same content) or 'conflict' (same key, other content). If any conflicts,
-- nothing at all is enqueued and the caller's transaction stays usable.
CREATE FUNCTION vestry.enqueue_jobs_v1(
  p_owner text, p_privacy text, p_latency text,
  p_task text, p_quality text, p_tier text,
  p_run_at timestamptz, p_deadline timestamptz, p_max_attempts integer,
  p_ids uuid[], p_kinds text[], p_pools text[], p_models text[], p_costs integer[],
  p_keep_payload boolean[], p_result_ttl_s integer[],
  p_key_hashes bytea[], p_content_hashes bytea[],
  p_key_id uuid, p_sealed bytea[], p_texts text[],
  p_doc_jobs integer[], p_doc_ordinals integer[], p_doc_sources text[], p_doc_hashes bytea[]
) RETURNS TABLE (ord integer, job_id uuid, status text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE
  v_count  integer := cardinality(p_ids);
  v_status text[] := array_fill('created'::text, ARRAY[cardinality(p_ids)]);
  v_ids    uuid[] := p_ids;
  v_now    timestamptz := vestry.clock();
  v_seen   record;
  v_first  record;
  v_inserted boolean;
  v_pool   text;
  v_conflict boolean := false;
  v_base   bigint;
  v_delayed boolean := p_run_at IS NOT NULL AND p_run_at > v_now;
BEGIN
  IF v_count = 0 THEN RETURN; END IF;
  IF p_privacy IS NULL OR p_privacy NOT IN ('private', 'shareable') THEN
    RAISE EXCEPTION 'privacy must be private or shareable' USING ERRCODE = 'VY003';
  END IF;
  IF p_owner IS NULL OR length(p_owner) NOT BETWEEN 1 AND 200 THEN
    RAISE EXCEPTION 'owner must be 1 to 200 characters' USING ERRCODE = 'VY003';
  END IF;
  IF EXISTS (SELECT FROM unnest(ARRAY[
               cardinality(p_kinds), cardinality(p_pools), coalesce(cardinality(p_models), v_count),
               cardinality(p_costs), cardinality(p_keep_payload), cardinality(p_result_ttl_s),
               coalesce(cardinality(p_key_hashes), v_count),
               coalesce(cardinality(p_content_hashes), v_count)]) n
             WHERE n IS DISTINCT FROM v_count)
     OR array_position(p_ids, NULL) IS NOT NULL OR array_position(p_keep_payload, NULL) IS NOT NULL
     OR (p_key_hashes IS NULL) <> (p_content_hashes IS NULL)
     OR coalesce(cardinality(p_doc_jobs), 0) <> coalesce(cardinality(p_doc_ordinals), 0)
     OR coalesce(cardinality(p_doc_jobs), 0) <> coalesce(cardinality(p_doc_sources), 0)
     OR coalesce(cardinality(p_doc_jobs), 0) <> coalesce(cardinality(p_doc_hashes), 0)
     OR EXISTS (SELECT FROM unnest(p_doc_jobs) d WHERE d IS NULL OR d NOT BETWEEN 1 AND v_count)
  THEN
    RAISE EXCEPTION 'the arrays do not describe the same jobs' USING ERRCODE = 'VY003';
  END IF;
  IF EXISTS (SELECT FROM unnest(p_kinds, p_pools, p_costs, p_result_ttl_s) u(kind, pool, cost, ttl)
             WHERE (u.cost >= 1 AND u.ttl >= 1 AND CASE u.kind
                      WHEN 'ocr' THEN u.pool = 'cpu'
                      WHEN 'embedding' THEN u.pool IN ('gpu', 'cloud')
                      WHEN 'classification' THEN u.pool IN ('gpu', 'cloud')
                      WHEN 'generation' THEN u.pool IN ('gpu', 'cloud')
                      WHEN 'rerank' THEN u.pool IN ('gpu', 'cloud')
                      ELSE false END
                    AND NOT (p_privacy = 'private' AND u.pool = 'cloud')) IS NOT TRUE) THEN
    RAISE EXCEPTION 'a job has no such kind, pool, cost or time to live' USING ERRCODE = 'VY003';
  END IF;

  INSERT INTO owners (owner) VALUES (p_owner) ON CONFLICT DO NOTHING;
  PERFORM 1 FROM owners o WHERE o.owner = p_owner AND o.forgotten_at IS NOT NULL;
  IF FOUND THEN
    RAISE EXCEPTION 'this owner was forgotten' USING ERRCODE = 'VY004';
  END IF;
  IF p_privacy = 'private' THEN
    IF p_texts IS NOT NULL OR p_sealed IS NULL OR cardinality(p_sealed) <> v_count
       OR array_position(p_sealed, NULL) IS NOT NULL THEN
      RAISE EXCEPTION 'a private payload must be sealed' USING ERRCODE = 'VY002';
    END IF;
    PERFORM 1 FROM owner_keys k WHERE k.key_id = p_key_id AND k.owner = p_owner;
    IF NOT FOUND THEN
      RAISE EXCEPTION 'the payload is sealed with a key this database does not know for the owner'
        USING ERRCODE = 'VY002';
    END IF;
    -- Envelope: version 1, then the key id (see vestry/crypto/envelope.py).
    IF EXISTS (SELECT FROM unnest(p_sealed) s
               WHERE substr(s, 1, 17) IS DISTINCT FROM '\x01'::bytea || uuid_send(p_key_id)
                  OR length(s) < 45) THEN
      RAISE EXCEPTION 'a private payload must be sealed' USING ERRCODE = 'VY002';
    END IF;
  ELSIF p_sealed IS NOT NULL OR p_texts IS NULL OR cardinality(p_texts) <> v_count THEN
    RAISE EXCEPTION 'a shareable payload is text' USING ERRCODE = 'VY003';
  END IF;

  -- Idempotency first: a repeated key must touch neither documents nor lanes. Sorted, so that two
  -- callers with the same keys cannot deadlock.
  FOR v_seen IN
    SELECT u.n::integer AS n, u.key_hash, u.content_hash
    FROM unnest(p_key_hashes, p_content_hashes) WITH ORDINALITY u(key_hash, content_hash, n)
    WHERE u.key_hash IS NOT NULL ORDER BY u.key_hash, u.n
  LOOP
    LOOP
      INSERT INTO idempotency_keys (owner, privacy, key_hash, content_hash, job_id)
      VALUES (p_owner, p_privacy, v_seen.key_hash, v_seen.content_hash, p_ids[v_seen.n])
      ON CONFLICT DO NOTHING;
      v_inserted := FOUND;
      EXIT WHEN v_inserted;
      SELECT k.job_id, k.content_hash = v_seen.content_hash AS same INTO v_first
      FROM idempotency_keys k
      WHERE k.owner = p_owner AND k.privacy = p_privacy AND k.key_hash = v_seen.key_hash;
      -- Not found: pruned in between. The key is free again.
      EXIT WHEN FOUND;
    END LOOP;
    IF NOT v_inserted THEN
      v_ids[v_seen.n] := v_first.job_id;
      v_status[v_seen.n] := CASE WHEN v_first.same THEN 'existing' ELSE 'conflict' END;
      v_conflict := v_conflict OR NOT v_first.same;
    END IF;
  END LOOP;
  IF v_conflict THEN
    DELETE FROM idempotency_keys k USING unnest(p_ids) i WHERE k.job_id = i;
    RETURN QUERY SELECT u.n::integer, u.id, u.s
      FROM unnest(v_ids, v_status) WITH ORDINALITY u(id, s, n) WHERE u.s = 'conflict';
    RETURN;
  END IF;

  -- Documents: advance generations in one fixed order.
  IF cardinality(p_doc_jobs) > 0 THEN
    EXECUTE format($q$
      WITH d AS MATERIALIZED (
        SELECT x.job, x.ordinal, x.source, x.hash
        FROM unnest($1, $2, $3, $4) x(job, ordinal, source, hash)
        WHERE ($5)[x.job] = 'created'
        ORDER BY x.source, x.hash),
      up AS (
        INSERT INTO vestry.%1$I AS t (id, owner, source, external_hash, updated_at)
        SELECT uuidv7(), $6, d.source, d.hash, $7 FROM d
        ON CONFLICT (owner, source, external_hash)
        DO UPDATE SET generation = t.generation + 1, deleted = false, updated_at = $7
        RETURNING id, source, external_hash, generation)
      INSERT INTO vestry.job_documents (job_id, ordinal, privacy, document_id, generation)
      SELECT ($8)[d.job], d.ordinal, $9, up.id, up.generation
      FROM d JOIN up ON up.source = d.source AND up.external_hash = d.hash
    $q$, p_privacy || '_documents')
    USING p_doc_jobs, p_doc_ordinals, p_doc_sources, p_doc_hashes, v_status, p_owner, v_now,
          p_ids, p_privacy;
  END IF;

  -- Place in line, per lane: an idle owner starts at the lane's virtual time, a busy one behind
  -- its own last job. Two callers of one owner may share start tags; nobody waits on a lock for it.
  FOREACH v_pool IN ARRAY ARRAY(SELECT DISTINCT unnest(p_pools)) LOOP
    v_base := NULL;
    IF NOT v_delayed THEN
      v_base := vestry.next_start_tag_v1(p_privacy || '.' || p_latency || '.' || v_pool, p_owner);
    END IF;
    INSERT INTO jobs (id, kind, task, quality, tier, model, owner, privacy, latency, pool, state,
                      cost, start_tag, max_attempts, keep_payload, result_ttl_s, run_at, deadline,
                      created_at, root_id)
    SELECT u.id, u.kind, p_task, coalesce(p_quality, 'adequate'), p_tier, u.model, p_owner,
           p_privacy, p_latency, v_pool, 'queued', u.cost,
           v_base + sum(u.cost) OVER (ORDER BY u.n) - u.cost,
           coalesce(p_max_attempts, 5), u.keep, u.ttl, coalesce(p_run_at, v_now), p_deadline,
           v_now, NULL
    FROM unnest(p_ids, p_kinds, p_pools, p_models, p_costs, p_keep_payload, p_result_ttl_s, v_status)
         WITH ORDINALITY u(id, kind, pool, model, cost, keep, ttl, status, n)
    WHERE u.status = 'created' AND u.pool = v_pool;
    IF NOT v_delayed AND p_latency = 'interactive' THEN
      PERFORM pg_notify('vestry_lane', p_privacy || '.' || p_latency || '.' || v_pool);
    END IF;
  END LOOP;

  IF p_privacy = 'private' THEN
    INSERT INTO private_payloads (job_id, owner, key_id, body)
    SELECT u.id, p_owner, p_key_id, u.body FROM unnest(p_ids, p_sealed, v_status) u(id, body, s)
    WHERE u.s = 'created';
  ELSE
    INSERT INTO shareable_payloads (job_id, owner, body)
    SELECT u.id, p_owner, u.body FROM unnest(p_ids, p_texts, v_status) u(id, body, s)
    WHERE u.s = 'created';
  END IF;

  RETURN QUERY SELECT u.n::integer, u.id, u.s
    FROM unnest(v_ids, v_status) WITH ORDINALITY u(id, s, n);
END $$;

-- The start tag for an owner's next job in a lane.
CREATE FUNCTION vestry.next_start_tag_v1(p_lane text, p_owner text) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, vestry, pg_temp
AS $$
  SELECT coalesce(
    (SELECT j.start_tag + j.cost FROM vestry.jobs j
     WHERE j.lane = l.lane AND j.owner = p_owner AND j.state = 'queued' AND j.start_tag >= l.virtual_time
     ORDER BY j.start_tag DESC LIMIT 1),
    l.virtual_time)
  FROM vestry.lanes l WHERE l.lane = p_lane
$$;

-- Store an owner's wrapped data key unless there is one; returns the one that counts. `fresh` says
-- the row was made by the calling transaction and is not to be cached before it commits.
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

-- Cancel jobs wherever they are. Running ones lose their lease and so their right to finish.
CREATE FUNCTION vestry.cancel_jobs_v1(p_ids uuid[]) RETURNS TABLE (job_id uuid, state text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
BEGIN
  PERFORM 1 FROM jobs j WHERE j.id = ANY (p_ids) ORDER BY j.id FOR UPDATE;
  UPDATE jobs j
  SET state = 'cancelled', start_tag = NULL, lease_id = NULL, finished_at = vestry.clock(),
      error_code = 'cancelled', error_message = 'cancelled by request'
  WHERE j.id = ANY (p_ids) AND j.state IN ('waiting', 'queued', 'running');
  DELETE FROM private_payloads p USING jobs j
  WHERE p.job_id = j.id AND j.id = ANY (p_ids) AND j.state = 'cancelled';
  DELETE FROM shareable_payloads p USING jobs j
  WHERE p.job_id = j.id AND j.id = ANY (p_ids) AND j.state = 'cancelled' AND NOT j.keep_payload;
  PERFORM pg_notify('vestry_done', j.id::text) FROM jobs j
  WHERE j.id = ANY (p_ids) AND j.state = 'cancelled' AND j.latency = 'interactive';
  RETURN QUERY SELECT j.id, j.state FROM jobs j WHERE j.id = ANY (p_ids);
END $$;

-- Delete documents, also while they are being embedded: the generation moves on, so an attempt
-- under way may no longer write. Returns how many existed.
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
  -- Three statements, not one: the lock may have waited for an attempt that stored chunks just then,
  -- and only a statement begun after it sees them.
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

-- Pause or resume a lane. Running jobs are left to finish.
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

-- Declare an embedding space, with its partition and HNSW index. Same name, other shape: an error.
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
    EXECUTE format('CREATE TABLE vestry.%I (LIKE vestry.shareable_embeddings INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', v_part);
    EXECUTE format('ALTER TABLE vestry.shareable_embeddings ATTACH PARTITION vestry.%I FOR VALUES IN (%s)', v_part, v_space.id);
    EXECUTE format('CREATE INDEX %I ON vestry.%I USING hnsw ((vector::public.halfvec(%s)) public.halfvec_cosine_ops)',
                   v_part || '_hnsw', v_part, p_dimension);
  ELSIF v_space.dimension <> p_dimension OR v_space.model <> p_model
        OR v_space.revision <> p_revision THEN
    RAISE EXCEPTION 'space % exists with another model, revision or dimension', p_name
      USING ERRCODE = 'VY003';
  END IF;
  RETURN v_space.id;
END $$;
