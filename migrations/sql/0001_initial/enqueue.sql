-- The producers' contract: functions that enqueue jobs in the caller's transaction. A breaking change adds a
-- _v2 beside them. Errors that a caller can act on have SQLSTATE VYxxx; vestry/errors.py names them.

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
COMMENT ON FUNCTION vestry.next_start_tag_v1 IS
  'Start tag of an owner''s next job in a lane.';

CREATE FUNCTION vestry.enqueue_jobs_v1(
  p_owner text, p_privacy text, p_latency text,
  -- One element per job.
  p_ids uuid[], p_kinds text[], p_costs integer[], p_keep_payload boolean[], p_result_ttl_s integer[],
  p_pools text[] DEFAULT NULL, p_models text[] DEFAULT NULL, p_tasks text[] DEFAULT NULL,
  p_parents integer[] DEFAULT NULL,
  p_key_hashes bytea[] DEFAULT NULL, p_content_hashes bytea[] DEFAULT NULL,
  p_sealed bytea[] DEFAULT NULL, p_texts text[] DEFAULT NULL,
  -- For all jobs of the call.
  p_key_id uuid DEFAULT NULL, p_quality text DEFAULT NULL, p_tier text DEFAULT NULL,
  p_run_at timestamptz DEFAULT NULL, p_deadline timestamptz DEFAULT NULL,
  p_max_attempts integer DEFAULT NULL,
  -- One element per document.
  p_doc_jobs integer[] DEFAULT NULL, p_doc_ordinals integer[] DEFAULT NULL,
  p_doc_sources text[] DEFAULT NULL, p_doc_hashes bytea[] DEFAULT NULL
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
    RAISE EXCEPTION 'a job''s kind, pool, cost or time to live is invalid' USING ERRCODE = 'VY003';
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
      RAISE EXCEPTION 'the payload is sealed with a key that is not the owner''s in this database'
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
      -- Not found: the row was pruned in between, and the key can be inserted.
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

  -- Flows. The root of a flow names itself as its root.
  IF p_parents IS NOT NULL THEN
    v_roots := array_fill(NULL::uuid, ARRAY[v_count]);
    FOR n IN 1 .. v_count LOOP
      CONTINUE WHEN p_parents[n] IS NULL;
      v_roots[p_parents[n]] := coalesce(v_roots[p_parents[n]], v_ids[p_parents[n]]);
      v_roots[n] := v_roots[p_parents[n]];
      IF v_status[p_parents[n]] = 'existing' THEN
        -- The flow exists: its jobs, in the order of their creation.
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

  -- Start tags, per lane: an idle owner starts at the lane's virtual time, a busy one after its own last
  -- job. Two concurrent callers of one owner may assign equal tags; no lock is taken for this.
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
COMMENT ON FUNCTION vestry.enqueue_jobs_v1 IS
  'Enqueue jobs of one owner in the caller''s transaction. Call it with named parameters. p_pools: NULL takes '
  'the published route. p_parents: 1-based position of the job that a job waits for, before its own; ids '
  'ascend. p_doc_jobs: 1-based position of a document''s job. Returns one row per job: ''created'', '
  '''existing'' (same idempotency key, same content) or ''conflict'' (same key, other content). If any '
  'conflicts, nothing is enqueued and the caller''s transaction stays usable.';

CREATE FUNCTION vestry.store_blobs_v1(
  p_owner text, p_privacy text, p_key_id uuid,
  p_jobs uuid[], p_names text[], p_parts integer[], p_bodies bytea[]
) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
BEGIN
  IF p_privacy IS NULL OR p_privacy NOT IN ('private', 'shareable') THEN
    RAISE EXCEPTION 'privacy must be private or shareable' USING ERRCODE = 'VY003';
  END IF;
  IF EXISTS (SELECT FROM unnest(p_jobs, p_names, p_parts, p_bodies) u(job, name, part, body)
             WHERE (u.part BETWEEN 0 AND 63 AND length(u.name) BETWEEN 1 AND 100
                    AND u.body IS NOT NULL) IS NOT TRUE)
     OR EXISTS (SELECT FROM unnest(p_jobs) u(job)
                WHERE NOT EXISTS (SELECT FROM jobs j
                                  WHERE j.id = u.job AND j.owner = p_owner AND j.privacy = p_privacy
                                    AND j.state IN ('queued', 'waiting')))
  THEN
    RAISE EXCEPTION 'the parts are invalid, or not of files of these jobs' USING ERRCODE = 'VY003';
  END IF;
  IF p_privacy = 'private' THEN
    IF NOT EXISTS (SELECT FROM owner_keys k WHERE k.key_id = p_key_id AND k.owner = p_owner)
       OR EXISTS (SELECT FROM unnest(p_bodies) s
                  WHERE substr(s, 1, 17) IS DISTINCT FROM '\x01'::bytea || uuid_send(p_key_id)
                     OR length(s) < 45) THEN
      RAISE EXCEPTION 'a private file must be sealed' USING ERRCODE = 'VY002';
    END IF;
    INSERT INTO private_blobs (job_id, name, part, owner, key_id, body)
    SELECT u.job, u.name, u.part, p_owner, p_key_id, u.body
    FROM unnest(p_jobs, p_names, p_parts, p_bodies) u(job, name, part, body);
  ELSE
    INSERT INTO shareable_blobs (job_id, name, part, owner, body)
    SELECT u.job, u.name, u.part, p_owner, u.body
    FROM unnest(p_jobs, p_names, p_parts, p_bodies) u(job, name, part, body);
  END IF;
END $$;
COMMENT ON FUNCTION vestry.store_blobs_v1 IS
  'Store parts of jobs'' files in the transaction that enqueued the jobs. A file has at most 64 parts of '
  '1 MiB; private parts are sealed with the owner''s key, as payloads are.';

CREATE FUNCTION vestry.private_sources_v1(p_owner text, p_sources text[]) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
  SELECT s FROM unnest(p_sources) s
  WHERE EXISTS (SELECT FROM vestry.private_documents d
                WHERE d.owner = p_owner AND d.source = s AND NOT d.deleted)
$$;
COMMENT ON FUNCTION vestry.private_sources_v1 IS
  'Those of the named sources in which the owner has private documents. A shareable job that names one is '
  'refused: privacy cannot be raised after a cloud has read the content.';
