-- The long statements of this package, by name. models/sql.py loads them and drops the comments. Fields in
-- braces are filled in by the module that executes the statement.

-- Claims (models/claims.py) ---------------------------------------------------------------------------

-- name: ready_jobs
-- Head of a (lane, kind) queue, row-locked. Flat in the backlog: it reads the index jobs_ready or
-- jobs_quarantined from the low-water mark and stops at the limit.
SELECT j.id, j.start_tag, j.cost
FROM (SELECT vestry.clock() AS t OFFSET 0) now, vestry.jobs j
WHERE j.lane = %(lane)s AND j.kind = {kind} AND j.state = 'queued'
  AND j.start_tag IS NOT NULL AND {quarantined}
  AND j.start_tag >= {mark} AND {condition}
  AND (j.deadline IS NULL OR j.deadline > now.t)
  AND EXISTS (SELECT FROM vestry.lanes l WHERE l.lane = %(lane)s AND l.paused_at IS NULL)
ORDER BY j.start_tag, j.id
LIMIT %(limit)s
FOR UPDATE OF j SKIP LOCKED

-- name: claim
-- Take a batch of one kind and model under a new lease. A row selected by its id has the condition
-- "j.state || '' = 'queued'", which no partial index matches: with statistics from before the backlog the
-- planner otherwise scans the whole queue and filters for that id (100,000 jobs: 21 to 49 ms).
WITH heads AS MATERIALIZED (
  -- The first job of each kind, with the kind's mark and budget.
  SELECT f.id, f.kind, f.model, f.start_tag, k.mark, k.budget
  FROM unnest(%(kinds)s::text[], %(marks)s::bigint[], %(budgets)s::bigint[]) k(kind, mark, budget),
  LATERAL (
    SELECT j.id, j.kind, j.model, j.start_tag FROM vestry.jobs j
    WHERE %(hint)s::uuid IS NULL AND j.lane = %(lane)s AND j.kind = k.kind
      AND j.state = 'queued' AND j.start_tag IS NOT NULL AND {quarantined}
      AND j.start_tag >= k.mark
    ORDER BY j.start_tag, j.id LIMIT 1) f),
free AS MATERIALIZED (
  -- The first of those that is not row-locked. With one kind there is no choice.
  SELECT f.id FROM heads f JOIN vestry.jobs j ON j.id = f.id
  WHERE cardinality(%(kinds)s::text[]) > 1 AND j.state || '' = 'queued'
  ORDER BY f.start_tag, f.id LIMIT 1 FOR UPDATE OF j SKIP LOCKED),
head AS MATERIALIZED (
  -- Kind and model of the batch: those of the hinted job, else of the free one, else of the first (another
  -- job of its kind may be free).
  SELECT h.id, h.kind, h.model, h.mark, h.budget FROM (
    SELECT j.id, j.kind, j.model, k.mark, k.budget FROM vestry.jobs j
    JOIN unnest(%(kinds)s::text[], %(marks)s::bigint[], %(budgets)s::bigint[])
      k(kind, mark, budget) ON k.kind = j.kind
    WHERE j.id = %(hint)s AND j.lane = %(lane)s AND j.state || '' = 'queued' AND j.start_tag IS NOT NULL
      AND NOT j.quarantined
    UNION ALL
    (SELECT f.id, f.kind, f.model, f.mark, f.budget FROM heads f
     ORDER BY f.id NOT IN (SELECT id FROM free), f.start_tag, f.id LIMIT 1)
  ) h LIMIT 1),
hinted AS MATERIALIZED (
  SELECT j.id, j.start_tag, j.cost FROM vestry.jobs j JOIN head ON head.id = j.id
  WHERE %(hint)s::uuid IS NOT NULL AND j.state || '' = 'queued' AND j.start_tag IS NOT NULL
    AND NOT j.quarantined
    AND EXISTS (SELECT FROM vestry.lanes l WHERE l.lane = %(lane)s AND l.paused_at IS NULL)
    AND (j.deadline IS NULL OR j.deadline > vestry.clock())
  FOR UPDATE OF j SKIP LOCKED),
line AS MATERIALIZED ({ready_jobs}),
chosen AS (
  SELECT u.id, u.start_tag,
         sum(u.cost) OVER (ORDER BY u.rank, u.start_tag, u.id) - u.cost AS before,
         row_number() OVER (ORDER BY u.rank, u.start_tag, u.id) AS place
  FROM (SELECT id, start_tag, cost, 0 AS rank FROM hinted
        UNION ALL
        SELECT id, start_tag, cost, 1 FROM line
        WHERE %(hint)s::uuid IS NULL
           OR (EXISTS (SELECT FROM hinted) AND id NOT IN (SELECT id FROM hinted))) u),
batch AS MATERIALIZED (
  SELECT id, start_tag FROM chosen WHERE before < (SELECT budget FROM head) AND place <= %(limit)s),
now AS MATERIALIZED (SELECT vestry.clock() AS t),
lease AS (
  INSERT INTO vestry.leases (lane, privacy, worker, exclusive, created_at, expires_at, max_until)
  SELECT %(lane)s, %(privacy)s, %(worker)s, %(exclusive)s, now.t,
         now.t + make_interval(secs => least(%(lease_s)s, %(max_run_s)s)),
         now.t + make_interval(secs => %(max_run_s)s)
  FROM now WHERE EXISTS (SELECT FROM batch)
  RETURNING id),
claimed AS (
  UPDATE vestry.jobs j
  SET state = 'running', start_tag = NULL, lease_id = lease.id, attempt = j.attempt + 1,
      started_at = now.t
  FROM batch, lease, now WHERE j.id = batch.id AND j.state || '' = 'queued'
  RETURNING j.*),
moved AS (
  UPDATE vestry.lanes l SET virtual_time = (SELECT max(start_tag) FROM batch)
  WHERE l.lane = (SELECT x.lane FROM vestry.lanes x
                  WHERE x.lane = %(lane)s AND x.virtual_time < (SELECT max(start_tag) FROM batch)
                  FOR UPDATE SKIP LOCKED))
SELECT c.lease_id, c.id, c.kind, c.task, c.model, c.owner, c.latency, c.cost, c.attempt,
       c.max_attempts, c.keep_payload, c.result_ttl_s, c.created_at, c.started_at,
       c.quality, c.tier, c.parent_id, c.root_id, c.tried_models,
       (SELECT virtual_time FROM vestry.lanes WHERE lane = %(lane)s) AS virtual_time,
       (SELECT min(start_tag) FROM batch) AS first_tag,
       ARRAY(SELECT h.start_tag FROM unnest(%(kinds)s::text[]) WITH ORDINALITY k(kind, place)
             LEFT JOIN heads h ON h.kind = k.kind ORDER BY k.place) AS head_tags,
       EXISTS (SELECT FROM heads WHERE kind <> (SELECT kind FROM head))
       OR (SELECT true FROM vestry.jobs j
           WHERE j.lane = %(lane)s AND j.kind = (SELECT kind FROM head)
             AND j.state = 'queued' AND j.start_tag IS NOT NULL AND {quarantined}
             AND j.start_tag >= (SELECT mark FROM head) AND j.id NOT IN (SELECT id FROM batch)
           ORDER BY j.start_tag, j.id LIMIT 1) IS NOT NULL AS more
FROM claimed c ORDER BY c.id

-- name: claimable_heads
-- First unlocked job, and first unlocked quarantined job, of every (lane, kind) queue; no marks.
SELECT f.id FROM unnest(%(lanes)s::text[]) l(lane), unnest(%(kinds)s::text[]) k(kind), LATERAL (
  SELECT j.id FROM (SELECT vestry.clock() AS t OFFSET 0) now, vestry.jobs j
  WHERE j.lane = l.lane AND j.kind = k.kind AND j.state = 'queued' AND j.start_tag IS NOT NULL
    AND NOT j.quarantined AND (j.deadline IS NULL OR j.deadline > now.t)
    AND EXISTS (SELECT FROM vestry.lanes p WHERE p.lane = l.lane AND p.paused_at IS NULL)
  ORDER BY j.start_tag, j.id LIMIT 1 FOR UPDATE OF j SKIP LOCKED) f
UNION ALL
SELECT f.id FROM unnest(%(lanes)s::text[]) l(lane), unnest(%(kinds)s::text[]) k(kind), LATERAL (
  SELECT j.id FROM (SELECT vestry.clock() AS t OFFSET 0) now, vestry.jobs j
  WHERE j.lane = l.lane AND j.kind = k.kind AND j.state = 'queued' AND j.start_tag IS NOT NULL
    AND j.quarantined AND (j.deadline IS NULL OR j.deadline > now.t)
    AND EXISTS (SELECT FROM vestry.lanes p WHERE p.lane = l.lane AND p.paused_at IS NULL)
  ORDER BY j.start_tag, j.id LIMIT 1 FOR UPDATE OF j SKIP LOCKED) f

-- Hints (models/dispatch_queries.py) ------------------------------------------------------------------

-- name: mark_hinted
WITH picked AS MATERIALIZED ({ready_jobs}),
stamped AS (
  UPDATE vestry.jobs j SET hinted_at = vestry.clock()
  FROM picked WHERE j.id = picked.id RETURNING j.id)
SELECT picked.id, picked.start_tag,
       (SELECT virtual_time FROM vestry.lanes WHERE lane = %(lane)s) AS virtual_time
FROM picked JOIN stamped USING (id) ORDER BY picked.start_tag, picked.id

-- name: lanes_with_ready_jobs
SELECT w.lane, w.kind
FROM (SELECT vestry.clock() AS t OFFSET 0) now,
     unnest(%(lanes)s::text[], %(kinds)s::text[], %(marks)s::bigint[], %(ages)s::float8[])
       w(lane, kind, mark, age_s)
WHERE EXISTS (SELECT FROM vestry.jobs j
              WHERE j.lane = w.lane AND j.kind = w.kind AND j.state = 'queued'
                AND j.start_tag IS NOT NULL AND NOT j.quarantined AND j.start_tag >= w.mark
                AND j.created_at <= now.t - make_interval(secs => w.age_s))

-- Transitions (models/transitions.py) -----------------------------------------------------------------

-- name: settle
WITH moved AS (
  UPDATE vestry.jobs j
  SET state = s.state, lease_id = NULL, error_code = s.code, error_message = s.message,
      quarantined = j.quarantined AND s.state = 'queued',
      attempt = j.attempt - s.uncounted::int, degraded = s.degraded,
      tried_models = NULL,
      run_at = CASE WHEN s.state = 'queued'
                    THEN now.t + make_interval(secs => s.delay_s) ELSE j.run_at END,
      finished_at = CASE WHEN s.state = 'queued' THEN NULL ELSE now.t END
  FROM (SELECT vestry.clock() AS t OFFSET 0) now,
       unnest(%(ids)b::uuid[], %(states)b::text[], %(codes)b::text[], %(messages)b::text[],
              %(delays)b::float8[], %(uncounted)b::bool[], %(degraded)b::bool[])
         s(id, state, code, message, delay_s, uncounted, degraded)
  WHERE j.id = s.id AND j.lease_id = %(token)s AND j.state = 'running'
  RETURNING j.id, j.state, j.latency),
dropped AS (
  DELETE FROM vestry.leases
  WHERE id = %(token)s AND NOT EXISTS (SELECT FROM vestry.jobs
                                       WHERE lease_id = %(token)s AND id NOT IN (SELECT id FROM moved)))
SELECT pg_notify('vestry_done', id::text) FROM moved
WHERE latency = 'interactive' AND state <> 'queued'

-- name: rescue
WITH now AS MATERIALIZED (SELECT vestry.clock() AS t),
expired AS MATERIALIZED (
  SELECT l.id, l.exclusive, l.expires_at >= l.max_until AS overran
  FROM vestry.leases l, now WHERE l.expires_at < now.t
  ORDER BY l.id LIMIT %(limit)s FOR UPDATE OF l SKIP LOCKED),
held AS MATERIALIZED (
  SELECT j.id, j.lease_id, j.privacy, j.attempt, j.started_at, expired.exclusive, expired.overran,
         expired.exclusive AND (j.crashes + 1 >= %(crashes)s
                                OR j.attempt >= greatest(j.max_attempts, %(crashes)s)) AS dies
  FROM vestry.jobs j JOIN expired ON expired.id = j.lease_id
  WHERE j.state = 'running' ORDER BY j.id FOR UPDATE OF j SKIP LOCKED),
receipted AS (
  INSERT INTO vestry.receipts
    (job_id, lease_id, privacy, attempt, outcome, reason, started_at, finished_at)
  SELECT held.id, held.lease_id, held.privacy, held.attempt, 'lost',
         CASE WHEN held.overran AND held.exclusive
              THEN 'it reached the longest permitted run (VESTRY_MAX_RUN_S) in an exclusive run'
              WHEN held.overran
              THEN 'it reached the longest permitted run (VESTRY_MAX_RUN_S) in a batch'
              WHEN held.exclusive THEN %(lost_exclusive)s
              ELSE 'the process ended or froze while it ran a batch' END,
         held.started_at, now.t
  FROM held, now ON CONFLICT DO NOTHING),
moved AS (
  UPDATE vestry.jobs j
  SET lease_id = NULL, hinted_at = NULL,
      state = CASE WHEN held.dies THEN 'dead' ELSE 'queued' END,
      quarantined = NOT held.dies,
      crashes = j.crashes + held.exclusive::int,
      attempt = j.attempt - (NOT held.exclusive)::int,
      start_tag = CASE WHEN NOT held.dies THEN
                    (SELECT l.virtual_time FROM vestry.lanes l WHERE l.lane = j.lane) END,
      finished_at = CASE WHEN held.dies THEN now.t END,
      error_code = CASE WHEN NOT held.dies THEN NULL
                        WHEN held.overran THEN 'timed_out' ELSE 'crashed' END,
      error_message = CASE WHEN NOT held.dies THEN NULL WHEN held.overran
        THEN 'it reached the longest permitted run (VESTRY_MAX_RUN_S), again in an exclusive run'
        ELSE 'the worker process ended or froze in each exclusive run of this job' END
  FROM held, now WHERE j.id = held.id
  RETURNING j.id, j.state, j.latency, j.keep_payload),
private_deleted AS (
  DELETE FROM vestry.private_payloads p USING moved m
  WHERE p.job_id = m.id AND m.state = 'dead' AND m.latency = 'interactive' AND NOT m.keep_payload),
shareable_deleted AS (
  DELETE FROM vestry.shareable_payloads p USING moved m
  WHERE p.job_id = m.id AND m.state = 'dead' AND m.latency = 'interactive' AND NOT m.keep_payload),
dropped AS (
  DELETE FROM vestry.leases l USING expired WHERE l.id = expired.id
    AND NOT EXISTS (SELECT FROM vestry.jobs j WHERE j.lease_id = l.id
                      AND j.id NOT IN (SELECT id FROM held))),
notified AS (
  SELECT pg_notify('vestry_done', id::text) FROM moved
  WHERE state = 'dead' AND latency = 'interactive')
SELECT count(*) FILTER (WHERE state = 'queued'), count(*) FILTER (WHERE state = 'dead'),
       (SELECT count(*) FROM notified)
FROM moved

-- name: schedule_due
-- A retry gets the lane's virtual time, the front of the queue; a scheduled job is put after its owner's
-- other jobs.
WITH now AS MATERIALIZED (SELECT vestry.clock() AS t),
due AS MATERIALIZED (
  SELECT j.id, j.lane, j.owner, j.cost, j.run_at, j.attempt
  FROM vestry.jobs j, now
  WHERE j.state = 'queued' AND j.start_tag IS NULL AND j.run_at <= now.t
  ORDER BY j.run_at LIMIT %(limit)s FOR UPDATE OF j SKIP LOCKED),
queues AS MATERIALIZED (
  SELECT g.lane, g.owner, vestry.next_start_tag_v1(g.lane, g.owner) AS next_tag,
         (SELECT l.virtual_time FROM vestry.lanes l WHERE l.lane = g.lane) AS virtual_time
  FROM (SELECT DISTINCT lane, owner FROM due) g),
tagged AS (
  SELECT due.id, CASE WHEN due.attempt > 0 THEN queues.virtual_time ELSE queues.next_tag
           + sum(due.cost) OVER (PARTITION BY lane, owner, due.attempt > 0
                                 ORDER BY due.run_at, due.id) - due.cost END AS start_tag
  FROM due JOIN queues USING (lane, owner)),
moved AS (
  UPDATE vestry.jobs j SET start_tag = tagged.start_tag, hinted_at = NULL
  FROM tagged WHERE j.id = tagged.id RETURNING j.lane)
SELECT DISTINCT lane FROM moved

-- name: expire
WITH now AS MATERIALIZED (SELECT vestry.clock() AS t),
due AS MATERIALIZED (
  SELECT j.id FROM vestry.jobs j, now
  WHERE j.deadline IS NOT NULL AND j.finished_at IS NULL AND j.deadline <= now.t
  ORDER BY j.id LIMIT %(limit)s FOR UPDATE OF j SKIP LOCKED),
moved AS (
  UPDATE vestry.jobs j
  SET state = 'expired', start_tag = NULL, lease_id = NULL, finished_at = now.t,
      error_code = 'expired', error_message = 'its deadline passed before it finished'
  FROM due, now WHERE j.id = due.id RETURNING j.id, j.latency, j.keep_payload),
private_deleted AS (
  DELETE FROM vestry.private_payloads p USING moved WHERE p.job_id = moved.id),
shareable_deleted AS (
  DELETE FROM vestry.shareable_payloads p USING moved
  WHERE p.job_id = moved.id AND NOT moved.keep_payload)
SELECT id, CASE WHEN latency = 'interactive' THEN pg_notify('vestry_done', id::text) END
FROM moved

-- Receipts (models/receipts.py) -----------------------------------------------------------------------

-- name: insert_receipts
-- A rescued attempt's own receipt replaces the 'lost' one that the reconciler wrote for it.
INSERT INTO vestry.receipts AS r
  (job_id, lease_id, privacy, attempt, outcome, reason, intended_backend, intended_model,
   served_backend, served_model, locality, degraded, policy_version,
   input_tokens, output_tokens, cost, started_at)
SELECT u.job_id, %(token)s, %(privacy)s, u.attempt, u.outcome, u.reason,
       coalesce(u.intended_backend, u.backend), coalesce(u.intended_model, u.model),
       u.backend, u.model, u.locality, u.degraded, u.policy,
       u.input_tokens, u.output_tokens, u.cost, u.started_at
FROM unnest(%(job_id)b::uuid[], %(attempt)b::int[], %(outcome)b::text[], %(reason)b::text[],
            %(intended_backend)b::text[], %(intended_model)b::text[], %(backend)b::text[],
            %(model)b::text[], %(locality)b::text[], %(degraded)b::bool[], %(policy)b::text[],
            %(input_tokens)b::bigint[], %(output_tokens)b::bigint[], %(cost)b::numeric[],
            %(started_at)b::timestamptz[])
  u(job_id, attempt, outcome, reason, intended_backend, intended_model, backend, model,
    locality, degraded, policy, input_tokens, output_tokens, cost, started_at)
ON CONFLICT (job_id, lease_id) DO UPDATE
SET outcome = excluded.outcome, reason = excluded.reason,
    intended_backend = excluded.intended_backend,
    intended_model = excluded.intended_model,
    served_backend = excluded.served_backend, served_model = excluded.served_model,
    locality = excluded.locality, degraded = excluded.degraded,
    policy_version = excluded.policy_version, input_tokens = excluded.input_tokens,
    output_tokens = excluded.output_tokens, cost = excluded.cost,
    finished_at = excluded.finished_at
WHERE r.outcome = 'lost'

-- Documents (models/documents.py) ---------------------------------------------------------------------

-- name: insert_chunks
WITH u AS MATERIALIZED (
  SELECT * FROM unnest(%(id)b::uuid[], %(document_id)b::uuid[], %(owner)b::text[], %(ordinal)b::int[],
                       %(start_char)b::int[], %(end_char)b::int[], %(content_hash)b::bytea[],
                       %(key_id)b::uuid[], %(text)b::{content}[], %(space_id)b::int[],
                       %(source)b::text[], %(vector)b::text[])
    x(id, document_id, owner, ordinal, start_char, end_char, content_hash, key_id,
      text, space_id, source, vector)),
stored AS (
  INSERT INTO {chunks} (id, document_id, owner, ordinal, start_char, end_char,
                        content_hash, text{key_column})
  SELECT u.id, u.document_id, u.owner, u.ordinal, u.start_char, u.end_char,
         u.content_hash, u.text{key_value} FROM u)
INSERT INTO {embeddings} (chunk_id, space_id, owner, source, vector)
SELECT u.id, u.space_id, u.owner, u.source, u.vector::halfvec FROM u

-- Retention (models/retention.py) ---------------------------------------------------------------------

-- name: prune_jobs
WITH old AS MATERIALIZED (
  SELECT id FROM vestry.jobs j
  WHERE finished_at < (SELECT vestry.clock()) - make_interval(secs => %(keep_s)s)
    AND (root_id IS NULL OR NOT EXISTS (
      SELECT FROM vestry.jobs f WHERE f.root_id = j.root_id AND f.finished_at IS NULL))
  ORDER BY finished_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED),
a AS (DELETE FROM vestry.private_payloads t USING old WHERE t.job_id = old.id),
b AS (DELETE FROM vestry.shareable_payloads t USING old WHERE t.job_id = old.id),
c AS (DELETE FROM vestry.private_blobs t USING old WHERE t.job_id = old.id),
d AS (DELETE FROM vestry.shareable_blobs t USING old WHERE t.job_id = old.id),
e AS (DELETE FROM vestry.private_results t USING old WHERE t.job_id = old.id),
f AS (DELETE FROM vestry.shareable_results t USING old WHERE t.job_id = old.id),
g AS (DELETE FROM vestry.receipts t USING old WHERE t.job_id = old.id),
h AS (DELETE FROM vestry.job_documents t USING old WHERE t.job_id = old.id),
i AS (DELETE FROM vestry.idempotency_keys t USING old WHERE t.job_id = old.id),
pruned AS (DELETE FROM vestry.jobs t USING old WHERE t.id = old.id RETURNING 1)
SELECT count(*) FROM pruned
