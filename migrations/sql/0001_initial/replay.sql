-- Replaying finished jobs.

CREATE FUNCTION vestry.replay_jobs_v1(
  p_of uuid[], p_ids uuid[], p_key_id uuid, p_sealed bytea[], p_texts text[]
) RETURNS TABLE (ord integer, job_id uuid, status text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE
  v_now     timestamptz := vestry.clock();
  v_private boolean;
  v_owner   text;
BEGIN
  IF cardinality(p_of) = 0 THEN RETURN; END IF;
  IF cardinality(p_of) IS DISTINCT FROM cardinality(p_ids)
     OR coalesce(cardinality(p_sealed), cardinality(p_texts)) IS DISTINCT FROM cardinality(p_of)
     OR (p_sealed IS NULL) = (p_texts IS NULL)
     OR EXISTS (SELECT FROM unnest(p_of, p_ids, p_sealed, p_texts) WITH ORDINALITY u(of, id, sealed, body, n)
                WHERE u.of IS NULL OR u.id IS NULL OR (u.sealed IS NULL AND u.body IS NULL)
                   OR u.of <= p_of[u.n - 1] OR u.id <= p_ids[u.n - 1]) THEN
    RAISE EXCEPTION 'the arrays do not describe the same jobs' USING ERRCODE = 'VY003';
  END IF;

  -- Lock order: roots of flows, then jobs, each by id. Concurrent replays of one job are serialised.
  PERFORM vestry.lock_roots_v1(p_of);
  PERFORM 1 FROM jobs j WHERE j.id = ANY (p_of) ORDER BY j.id FOR UPDATE;
  -- Lock their replays too: one that ended while a job is made to wait for it would never release the job.
  PERFORM 1 FROM jobs j WHERE j.replay_of = ANY (p_of) ORDER BY j.id FOR UPDATE;
  IF (SELECT count(DISTINCT (j.owner, j.privacy)) FROM jobs j WHERE j.id = ANY (p_of)) > 1 THEN
    RAISE EXCEPTION 'jobs of one owner and privacy are replayed together' USING ERRCODE = 'VY003';
  END IF;
  IF EXISTS (SELECT FROM jobs j WHERE j.id = ANY (p_of) AND j.finished_at IS NULL) THEN
    RAISE EXCEPTION 'only a finished job can be replayed' USING ERRCODE = 'VY003';
  END IF;
  IF EXISTS (SELECT FROM jobs j LEFT JOIN jobs p ON p.id = j.parent_id LEFT JOIN jobs r ON r.replay_of = p.id
             WHERE j.id = ANY (p_of) AND j.parent_id IS NOT NULL AND j.started_at IS NULL
               AND p.state IS DISTINCT FROM 'succeeded'
               AND NOT EXISTS (SELECT FROM jobs x WHERE x.replay_of = j.id)
               AND (j.parent_id <> ALL (p_of) OR r.finished_at IS NOT NULL AND r.state <> 'succeeded')) THEN
    RAISE EXCEPTION 'a job that waited on one that failed is replayed with that one'
      USING ERRCODE = 'VY003';
  END IF;
  SELECT j.owner, j.privacy = 'private' INTO v_owner, v_private FROM jobs j WHERE j.id = ANY (p_of) LIMIT 1;
  PERFORM 1 FROM owners o WHERE o.owner = v_owner AND o.forgotten_at IS NOT NULL;
  IF FOUND THEN
    RAISE EXCEPTION 'this owner was forgotten' USING ERRCODE = 'VY004';
  END IF;
  IF v_private AND (p_sealed IS NULL
       OR NOT EXISTS (SELECT FROM owner_keys k WHERE k.key_id = p_key_id AND k.owner = v_owner)
       OR EXISTS (SELECT FROM unnest(p_sealed) s
                  WHERE substr(s, 1, 17) IS DISTINCT FROM '\x01'::bytea || uuid_send(p_key_id)
                     OR length(s) < 45)) THEN
    RAISE EXCEPTION 'a private payload must be sealed' USING ERRCODE = 'VY002';
  ELSIF NOT v_private AND p_texts IS NULL THEN
    RAISE EXCEPTION 'a shareable payload is text' USING ERRCODE = 'VY003';
  END IF;

  RETURN QUERY
  WITH requested AS MATERIALIZED (
    SELECT u.n, u.of, u.id, u.sealed, u.body, r.id AS before, j.id IS NULL AS gone
    FROM unnest(p_of, p_ids, p_sealed, p_texts) WITH ORDINALITY u(of, id, sealed, body, n)
    LEFT JOIN jobs j ON j.id = u.of LEFT JOIN jobs r ON r.replay_of = u.of),
  fresh AS MATERIALIZED (
    SELECT a.*, p.parent, coalesce(f.root, j.root_id) AS root, m.pool,
           CASE WHEN p.waits THEN 'waiting' ELSE 'queued' END AS state
    FROM requested a JOIN jobs j ON j.id = a.of
    -- The parent is the replay of the old parent, unless that replay ended without a result; then it is the
    -- old parent, after which the job did run.
    CROSS JOIN LATERAL (
      SELECT CASE WHEN r.finished_at IS NULL OR r.state = 'succeeded' THEN coalesce(b.before, b.id, j.parent_id)
                  ELSE j.parent_id END AS parent,
             b.of IS NOT NULL AND r.finished_at IS NULL AS waits
      FROM (SELECT 1) one LEFT JOIN requested b ON b.of = j.parent_id LEFT JOIN jobs r ON r.id = b.before) p
    CROSS JOIN LATERAL (
      SELECT CASE WHEN j.model IS NULL
        THEN vestry.route_v1(j.kind, j.task, j.privacy, j.latency, j.quality, j.tier) ELSE j.pool END AS pool) m
    LEFT JOIN LATERAL (
      SELECT coalesce(b.before, b.id) AS root FROM requested b LEFT JOIN jobs r ON r.id = b.before
      WHERE b.of = j.root_id AND (r.finished_at IS NULL OR r.state = 'succeeded')) f ON true
    WHERE a.before IS NULL),
  created AS (
    INSERT INTO jobs (id, kind, task, quality, tier, model, owner, privacy, latency, pool, state, cost,
                      start_tag, max_attempts, keep_payload, result_ttl_s, run_at, created_at, parent_id,
                      root_id, replay_of)
    SELECT f.id, j.kind, j.task, j.quality, j.tier, j.model, j.owner, j.privacy, j.latency, f.pool,
           f.state, j.cost,
           CASE WHEN f.state = 'queued' THEN
             vestry.next_start_tag_v1(j.privacy || '.' || j.latency || '.' || f.pool, j.owner)
             + sum(j.cost) FILTER (WHERE f.state = 'queued')
               OVER (PARTITION BY j.latency, f.pool ORDER BY f.n) - j.cost END,
           j.max_attempts, j.keep_payload, j.result_ttl_s, v_now, v_now, f.parent, f.root, f.of
    FROM fresh f JOIN jobs j ON j.id = f.of
    RETURNING jobs.lane, jobs.latency, jobs.state),
  notified AS MATERIALIZED (
    SELECT pg_notify('vestry_lane', c.lane) FROM created c
    WHERE c.latency = 'interactive' AND c.state = 'queued' GROUP BY c.lane),
  documented AS (
    INSERT INTO job_documents (job_id, ordinal, privacy, document_id, generation)
    SELECT f.id, d.ordinal, d.privacy, d.document_id, d.generation
    FROM fresh f JOIN job_documents d ON d.job_id = f.of),
  keyed AS (UPDATE idempotency_keys k SET job_id = f.id FROM fresh f WHERE k.job_id = f.of),
  sealed AS (
    INSERT INTO private_payloads (job_id, owner, key_id, body)
    SELECT f.id, v_owner, p_key_id, f.sealed FROM fresh f WHERE v_private),
  plain AS (
    INSERT INTO shareable_payloads (job_id, owner, body)
    SELECT f.id, v_owner, f.body FROM fresh f WHERE NOT v_private)
  SELECT a.n::integer, coalesce(a.before, a.id),
         CASE WHEN a.gone THEN 'gone' WHEN a.before IS NULL THEN 'created' ELSE 'existing' END
  FROM requested a WHERE (SELECT count(*) FROM notified) >= 0 ORDER BY a.n;
END $$;
COMMENT ON FUNCTION vestry.replay_jobs_v1 IS
  'Replay finished jobs of one owner and privacy in the caller''s transaction: for p_of[n] a new job p_ids[n] '
  'with the same request and with its payload sealed for the new id; p_of and p_ids ascend. A job that died '
  'waiting for one that is replayed too waits for its replay. Documents keep the generation that they were '
  'enqueued for, so that a replay never overwrites newer content. An idempotency key names the replay from '
  'then on. The replay is runnable at once and has no deadline. Returns one row per job: ''created'', '
  '''existing'' (replayed before, as that job) or ''gone'' (the job does not exist any more).';
