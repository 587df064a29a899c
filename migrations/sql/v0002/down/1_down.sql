DROP TRIGGER jobs_flow ON vestry.jobs;
DROP POLICY library_private ON vestry.shareable_documents;
DROP POLICY library_private ON vestry.shareable_chunks;
DROP POLICY library_private ON vestry.shareable_embeddings;
REVOKE SELECT ON vestry.shareable_documents, vestry.shareable_chunks, vestry.shareable_embeddings
  FROM vestry_private;
REVOKE SELECT ON vestry.private_payloads, vestry.shareable_payloads, vestry.private_blobs,
  vestry.shareable_blobs FROM vestry_producer;

-- The contract's functions as they were.
CREATE OR REPLACE FUNCTION vestry.enqueue_jobs_v1(
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

CREATE OR REPLACE FUNCTION vestry.cancel_jobs_v1(p_ids uuid[]) RETURNS TABLE (job_id uuid, state text)
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

DROP FUNCTION vestry.enqueue_jobs_v2, vestry.route_v1, vestry.carry_down, vestry.lock_roots_v1, vestry.upstream_v1,
  vestry.reroute_jobs_v1, vestry.move_jobs_v1, vestry.backend_failed_v1, vestry.backend_succeeded_v1,
  vestry.backend_released_v1,  vestry.backend_probe_v1, vestry.rate_take_v1, vestry.store_blobs_v1, vestry.private_sources_v1;
ALTER TABLE vestry.jobs DROP COLUMN tried_models;
DROP TABLE vestry.routes, vestry.backend_health, vestry.rate_grants, vestry.spending;
