-- Where a request goes, as the dispatcher last published it from the policy and the backends' health.
-- '' stands for any task or tier that has no line of its own.
CREATE TABLE vestry.routes (
  kind    text NOT NULL,
  task    text NOT NULL,
  privacy text NOT NULL,
  latency text NOT NULL,
  quality text NOT NULL,
  tier    text NOT NULL,
  pool    text NOT NULL,
  model   text NOT NULL,
  PRIMARY KEY (kind, task, privacy, latency, quality, tier),
  CHECK (NOT (privacy = 'private' AND pool = 'cloud'))
);

-- The pool for a request; what nobody published runs on our own machines.
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

-- Producers' contract, second version: pools may be left to the published routes (NULL), and a job may
-- wait on another of the same call (p_parents: its 1-based place, before its own; ids ascending), whose
-- result it reads. Each job has a task of its own. Otherwise as v1, which stays for producers that know no other.
CREATE FUNCTION vestry.enqueue_jobs_v2(
  p_owner text, p_privacy text, p_latency text,
  p_tasks text[], p_quality text, p_tier text,
  p_run_at timestamptz, p_deadline timestamptz, p_max_attempts integer,
  p_ids uuid[], p_kinds text[], p_pools text[], p_models text[], p_costs integer[],
  p_keep_payload boolean[], p_result_ttl_s integer[],
  p_key_hashes bytea[], p_content_hashes bytea[],
  p_key_id uuid, p_sealed bytea[], p_texts text[],
  p_doc_jobs integer[], p_doc_ordinals integer[], p_doc_sources text[], p_doc_hashes bytea[],
  p_parents integer[]
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
  v_pools  text[];
  v_roots  uuid[];
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
               cardinality(p_kinds), coalesce(cardinality(p_pools), v_count),
               coalesce(cardinality(p_models), v_count),
               cardinality(p_costs), cardinality(p_keep_payload), cardinality(p_result_ttl_s),
               coalesce(cardinality(p_key_hashes), v_count),
               coalesce(cardinality(p_content_hashes), v_count)]) n
             WHERE n IS DISTINCT FROM v_count)
     OR coalesce(cardinality(p_parents), v_count) <> v_count
     OR coalesce(cardinality(p_tasks), v_count) <> v_count
     OR EXISTS (SELECT FROM unnest(p_parents) WITH ORDINALITY u(parent, n)
                WHERE u.parent NOT BETWEEN 1 AND u.n - 1 OR p_ids[u.n] <= p_ids[u.parent]
                   OR (u.parent IS NOT NULL AND p_key_hashes[u.n] IS NOT NULL))
     OR array_position(p_ids, NULL) IS NOT NULL OR array_position(p_keep_payload, NULL) IS NOT NULL
     OR (p_key_hashes IS NULL) <> (p_content_hashes IS NULL)
     OR coalesce(cardinality(p_doc_jobs), 0) <> coalesce(cardinality(p_doc_ordinals), 0)
     OR coalesce(cardinality(p_doc_jobs), 0) <> coalesce(cardinality(p_doc_sources), 0)
     OR coalesce(cardinality(p_doc_jobs), 0) <> coalesce(cardinality(p_doc_hashes), 0)
     OR EXISTS (SELECT FROM unnest(p_doc_jobs) d WHERE d IS NULL OR d NOT BETWEEN 1 AND v_count)
  THEN
    RAISE EXCEPTION 'the arrays do not describe the same jobs' USING ERRCODE = 'VY003';
  END IF;
  v_pools := ARRAY(
    SELECT coalesce(u.pool, vestry.route_v1(u.kind, u.task, p_privacy, p_latency, p_quality, p_tier))
    FROM unnest(p_kinds, p_pools, p_tasks) WITH ORDINALITY u(kind, pool, task, n) ORDER BY u.n);
  IF EXISTS (SELECT FROM unnest(p_kinds, v_pools, p_costs, p_result_ttl_s) u(kind, pool, cost, ttl)
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

  -- Flows: who waits on whom. A job with waiting ones is the root of its flow, and so its own.
  IF p_parents IS NOT NULL THEN
    v_roots := array_fill(NULL::uuid, ARRAY[v_count]);
    FOR n IN 1 .. v_count LOOP
      CONTINUE WHEN p_parents[n] IS NULL;
      v_roots[p_parents[n]] := coalesce(v_roots[p_parents[n]], v_ids[p_parents[n]]);
      v_roots[n] := v_roots[p_parents[n]];
      IF v_status[p_parents[n]] = 'existing' THEN
        -- The same flow again: its jobs, in the order they were made.
        v_status[n] := 'existing';
        v_ids[n] := coalesce(
          (SELECT j.id FROM jobs j WHERE j.root_id = v_roots[n] AND j.id <> v_roots[n] ORDER BY j.id
           OFFSET (SELECT count(*) FROM unnest(v_roots[:n - 1]) r
                   WHERE r = v_roots[n]) - 1 LIMIT 1), v_ids[n]);
      END IF;
    END LOOP;
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
  FOREACH v_pool IN ARRAY ARRAY(SELECT DISTINCT unnest(v_pools)) LOOP
    v_base := NULL;
    IF NOT v_delayed THEN
      v_base := vestry.next_start_tag_v1(p_privacy || '.' || p_latency || '.' || v_pool, p_owner);
    END IF;
    INSERT INTO jobs (id, kind, task, quality, tier, model, owner, privacy, latency, pool, state,
                      cost, start_tag, max_attempts, keep_payload, result_ttl_s, run_at, deadline,
                      created_at, parent_id, root_id)
    SELECT u.id, u.kind, u.task, coalesce(p_quality, 'adequate'), p_tier, u.model, p_owner,
           p_privacy, p_latency, v_pool, CASE WHEN u.parent IS NULL THEN 'queued' ELSE 'waiting' END,
           u.cost,
           CASE WHEN u.parent IS NULL
                THEN v_base + sum(u.cost) FILTER (WHERE u.parent IS NULL) OVER (ORDER BY u.n) - u.cost
           END,
           coalesce(p_max_attempts, 5), u.keep, u.ttl, coalesce(p_run_at, v_now), p_deadline,
           v_now, p_ids[u.parent], u.root
    FROM unnest(p_ids, p_kinds, v_pools, p_models, p_costs, p_keep_payload, p_result_ttl_s, v_status,
                p_parents, v_roots, p_tasks)
         WITH ORDINALITY u(id, kind, pool, model, cost, keep, ttl, status, parent, root, task, n)
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
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
  SELECT * FROM vestry.enqueue_jobs_v2(
    p_owner, p_privacy, p_latency, array_fill(p_task, ARRAY[cardinality(p_ids)]), p_quality, p_tier, p_run_at, p_deadline, p_max_attempts, p_ids, p_kinds, array_replace(p_pools, NULL, ''), p_models, p_costs, p_keep_payload, p_result_ttl_s, p_key_hashes, p_content_hashes, p_key_id, p_sealed, p_texts, p_doc_jobs, p_doc_ordinals, p_doc_sources, p_doc_hashes, NULL)
$$;
