-- Tables of the schema "vestry", owned by vestry_owner. Private content is sealed bytea in tables of its
-- own; shareable content is text in tables of its own.

-- The clock of all durations and orderings; no application clock is used.
CREATE FUNCTION vestry.clock() RETURNS timestamptz
LANGUAGE sql VOLATILE PARALLEL SAFE SET search_path = pg_catalog
AS 'SELECT clock_timestamp()';

CREATE TABLE vestry.owners (
  owner        text PRIMARY KEY CHECK (length(owner) BETWEEN 1 AND 200),
  created_at   timestamptz NOT NULL DEFAULT vestry.clock(),
  forgotten_at timestamptz
);
COMMENT ON COLUMN vestry.owners.forgotten_at IS
  'Tombstone: after it every enqueue and every finish for the owner is refused.';

CREATE TABLE vestry.owner_keys (
  key_id      uuid PRIMARY KEY,
  owner       text NOT NULL UNIQUE REFERENCES vestry.owners (owner) ON DELETE CASCADE,
  wrapped     bytea NOT NULL,
  kek_id      text NOT NULL,
  created_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
  created_at  timestamptz NOT NULL DEFAULT vestry.clock()
);
COMMENT ON TABLE vestry.owner_keys IS
  'One data key per owner, wrapped by the key-encryption key kek_id. created_xid shows a producer that '
  'the key is its own uncommitted row and must not be cached.';

CREATE TABLE vestry.wrapping_keys (
  kek_id     text PRIMARY KEY,
  created_at timestamptz NOT NULL DEFAULT vestry.clock(),
  retired_at timestamptz
);
COMMENT ON TABLE vestry.wrapping_keys IS
  'Every key-encryption key that ever wrapped a data key. A retired one may not wrap another.';

CREATE TABLE vestry.lanes (
  lane         text PRIMARY KEY,
  privacy      text NOT NULL,
  latency      text NOT NULL,
  pool         text NOT NULL,
  paused_at    timestamptz,
  virtual_time bigint NOT NULL DEFAULT 0,
  CHECK (lane = privacy || '.' || latency || '.' || pool),
  CHECK (NOT (privacy = 'private' AND pool = 'cloud'))
);
COMMENT ON COLUMN vestry.lanes.virtual_time IS
  'Start tag of the latest claimed job (start-time fair queueing).';

CREATE TABLE vestry.jobs (
  id            uuid PRIMARY KEY,
  kind          text NOT NULL CHECK (kind IN ('embedding','classification','ocr','generation','rerank')),
  task          text,
  quality       text NOT NULL DEFAULT 'adequate' CHECK (quality IN ('adequate','best')),
  tier          text,
  model         text,
  owner         text NOT NULL,
  privacy       text NOT NULL CHECK (privacy IN ('private','shareable')),
  latency       text NOT NULL CHECK (latency IN ('interactive','bulk')),
  pool          text NOT NULL CHECK (pool IN ('gpu','cpu','cloud')),
  lane          text NOT NULL GENERATED ALWAYS AS (privacy || '.' || latency || '.' || pool) STORED,
  state         text NOT NULL DEFAULT 'queued' CHECK (state IN
                  ('waiting','queued','running','succeeded','dead','cancelled','expired','superseded')),
  cost          integer NOT NULL DEFAULT 1 CHECK (cost >= 1),
  start_tag     bigint,
  attempt       integer NOT NULL DEFAULT 0,
  max_attempts  integer NOT NULL DEFAULT 5 CHECK (max_attempts >= 1),
  crashes       integer NOT NULL DEFAULT 0,
  quarantined   boolean NOT NULL DEFAULT false,
  keep_payload  boolean NOT NULL DEFAULT true,
  result_ttl_s  integer NOT NULL DEFAULT 604800,
  degraded      boolean NOT NULL DEFAULT false,
  lease_id      uuid,
  error_code    text,
  error_message text,
  parent_id     uuid,
  root_id       uuid,
  replay_of     uuid,
  tried_models  jsonb,
  run_at        timestamptz NOT NULL DEFAULT vestry.clock(),
  deadline      timestamptz,
  hinted_at     timestamptz,
  created_at    timestamptz NOT NULL DEFAULT vestry.clock(),
  started_at    timestamptz,
  finished_at   timestamptz,
  CHECK (NOT (privacy = 'private' AND pool = 'cloud')),
  CHECK ((state = 'running') = (lease_id IS NOT NULL)),
  CHECK (start_tag IS NULL OR state = 'queued'),
  CHECK ((finished_at IS NOT NULL) = (state IN ('succeeded','dead','cancelled','expired','superseded')))
) WITH (fillfactor = 85);
COMMENT ON COLUMN vestry.jobs.cost IS 'Weight of the job in fair queueing.';
COMMENT ON COLUMN vestry.jobs.start_tag IS
  'Position in the lane''s virtual time. A queued job without one is scheduled for run_at.';
COMMENT ON COLUMN vestry.jobs.quarantined IS
  'Its lease expired: it runs next under an exclusive lease.';
COMMENT ON COLUMN vestry.jobs.tried_models IS
  'Models that an attempt tried in one pool before the job was rerouted to another, each with the reason '
  'why it did not serve. Without it the other pool would reroute the job back, endlessly.';

CREATE INDEX jobs_ready       ON vestry.jobs (lane, kind, start_tag, id)
  WHERE state = 'queued' AND start_tag IS NOT NULL AND NOT quarantined;
CREATE INDEX jobs_quarantined ON vestry.jobs (lane, kind, start_tag, id)
  WHERE state = 'queued' AND start_tag IS NOT NULL AND quarantined;
CREATE INDEX jobs_owner_tag   ON vestry.jobs (lane, owner, start_tag)
  WHERE state = 'queued' AND start_tag IS NOT NULL;
CREATE INDEX jobs_scheduled   ON vestry.jobs (run_at)
  WHERE state = 'queued' AND start_tag IS NULL;
CREATE INDEX jobs_lease       ON vestry.jobs (lease_id) WHERE lease_id IS NOT NULL;
CREATE INDEX jobs_deadline    ON vestry.jobs (deadline)
  WHERE deadline IS NOT NULL AND finished_at IS NULL;
CREATE INDEX jobs_finished    ON vestry.jobs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_parent      ON vestry.jobs (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX jobs_root        ON vestry.jobs (root_id) WHERE root_id IS NOT NULL;
-- Each job is replayed at most once. A replay that died has a replay of its own.
CREATE UNIQUE INDEX jobs_replay ON vestry.jobs (replay_of) WHERE replay_of IS NOT NULL;

CREATE TABLE vestry.leases (
  id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
  lane       text NOT NULL,
  privacy    text NOT NULL,
  worker     text NOT NULL,
  exclusive  boolean NOT NULL DEFAULT false,
  created_at timestamptz NOT NULL DEFAULT vestry.clock(),
  expires_at timestamptz NOT NULL,
  max_until  timestamptz NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX leases_expiry ON vestry.leases (expires_at);
COMMENT ON TABLE vestry.leases IS 'One row per claimed batch. Its random id is the fencing token.';

CREATE TABLE vestry.receipts (
  job_id           uuid NOT NULL,
  lease_id         uuid NOT NULL,
  privacy          text NOT NULL,
  attempt          integer NOT NULL,
  outcome          text NOT NULL,
  reason           text,
  intended_backend text,
  intended_model   text,
  served_backend   text,
  served_model     text,
  locality         text,
  degraded         boolean NOT NULL DEFAULT false,
  policy_version   text,
  input_tokens     bigint,
  output_tokens    bigint,
  cost             numeric,
  started_at       timestamptz,
  finished_at      timestamptz NOT NULL DEFAULT vestry.clock(),
  PRIMARY KEY (job_id, lease_id)
);
COMMENT ON TABLE vestry.receipts IS
  'One row per attempt, kept also where its effects were refused. cost is in US dollars.';

CREATE TABLE vestry.idempotency_keys (
  owner        text NOT NULL,
  privacy      text NOT NULL,
  key_hash     bytea NOT NULL,
  content_hash bytea NOT NULL,
  job_id       uuid NOT NULL,
  PRIMARY KEY (owner, privacy, key_hash)
);
CREATE INDEX idempotency_keys_job ON vestry.idempotency_keys (job_id);
COMMENT ON TABLE vestry.idempotency_keys IS
  'key_hash and content_hash are HMACs under the owner''s key (private) or SHA-256 (shareable).';

CREATE TABLE vestry.private_payloads (
  job_id uuid PRIMARY KEY, owner text NOT NULL, key_id uuid NOT NULL, body bytea NOT NULL);
CREATE TABLE vestry.shareable_payloads (
  job_id uuid PRIMARY KEY, owner text NOT NULL, body text NOT NULL);

CREATE TABLE vestry.private_results (
  job_id uuid PRIMARY KEY, owner text NOT NULL, key_id uuid NOT NULL, body bytea NOT NULL,
  expires_at timestamptz NOT NULL);
CREATE INDEX private_results_expiry ON vestry.private_results (expires_at);
CREATE TABLE vestry.shareable_results (
  job_id uuid PRIMARY KEY, owner text NOT NULL, body text NOT NULL,
  expires_at timestamptz NOT NULL);
CREATE INDEX shareable_results_expiry ON vestry.shareable_results (expires_at);

CREATE TABLE vestry.private_blobs (
  job_id uuid NOT NULL, name text NOT NULL, part integer NOT NULL, owner text NOT NULL,
  key_id uuid NOT NULL, body bytea NOT NULL CHECK (length(body) <= 1048576 + 64),
  PRIMARY KEY (job_id, name, part));
CREATE TABLE vestry.shareable_blobs (
  job_id uuid NOT NULL, name text NOT NULL, part integer NOT NULL, owner text NOT NULL,
  body bytea NOT NULL CHECK (length(body) <= 1048576),
  PRIMARY KEY (job_id, name, part));
COMMENT ON TABLE vestry.private_blobs IS 'Files of jobs in parts of at most 1 MiB, never inside JSON.';
COMMENT ON TABLE vestry.shareable_blobs IS 'Files of jobs in parts of at most 1 MiB, never inside JSON.';

CREATE TABLE vestry.spaces (
  id              integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name            text NOT NULL UNIQUE,
  model           text NOT NULL,
  revision        text NOT NULL,
  dimension       integer NOT NULL CHECK (dimension BETWEEN 1 AND 4000),
  query_prefix    text NOT NULL DEFAULT '',
  document_prefix text NOT NULL DEFAULT '',
  normalised      boolean NOT NULL,
  precision       text NOT NULL,
  library         text NOT NULL,
  created_at      timestamptz NOT NULL DEFAULT vestry.clock()
);
COMMENT ON TABLE vestry.spaces IS 'Vector spaces. Vectors of different spaces are never compared.';

CREATE TABLE vestry.private_documents (
  id                 uuid PRIMARY KEY,
  owner              text NOT NULL,
  source             text NOT NULL,
  external_hash      bytea NOT NULL,
  generation         bigint NOT NULL DEFAULT 1,
  deleted            boolean NOT NULL DEFAULT false,
  indexed_generation bigint,
  indexed_hash       bytea,
  indexed_space      integer REFERENCES vestry.spaces (id),
  key_id             uuid,
  detail             bytea,
  updated_at         timestamptz NOT NULL DEFAULT vestry.clock(),
  UNIQUE (owner, source, external_hash)
);
CREATE TABLE vestry.shareable_documents (
  id                 uuid PRIMARY KEY,
  owner              text NOT NULL,
  source             text NOT NULL,
  external_hash      bytea NOT NULL,
  generation         bigint NOT NULL DEFAULT 1,
  deleted            boolean NOT NULL DEFAULT false,
  indexed_generation bigint,
  indexed_hash       bytea,
  indexed_space      integer REFERENCES vestry.spaces (id),
  detail             text,
  updated_at         timestamptz NOT NULL DEFAULT vestry.clock(),
  UNIQUE (owner, source, external_hash)
);
COMMENT ON COLUMN vestry.private_documents.generation IS
  'Advanced by every enqueue and delete. An attempt for an older generation may not write.';
COMMENT ON COLUMN vestry.shareable_documents.generation IS
  'Advanced by every enqueue and delete. An attempt for an older generation may not write.';
COMMENT ON COLUMN vestry.private_documents.indexed_generation IS
  'indexed_*: generation, content hash and space of the stored chunks.';
COMMENT ON COLUMN vestry.shareable_documents.indexed_generation IS
  'indexed_*: generation, content hash and space of the stored chunks.';

CREATE TABLE vestry.job_documents (
  job_id      uuid NOT NULL,
  ordinal     integer NOT NULL,
  privacy     text NOT NULL,
  document_id uuid NOT NULL,
  generation  bigint NOT NULL,
  PRIMARY KEY (job_id, ordinal)
);
COMMENT ON TABLE vestry.job_documents IS 'The documents of a job and the generation it was enqueued for.';

CREATE TABLE vestry.private_chunks (
  id           uuid PRIMARY KEY,
  document_id  uuid NOT NULL REFERENCES vestry.private_documents (id) ON DELETE CASCADE,
  owner        text NOT NULL,
  ordinal      integer NOT NULL,
  start_char   integer NOT NULL,
  end_char     integer NOT NULL,
  content_hash bytea NOT NULL,
  key_id       uuid NOT NULL,
  text         bytea
);
CREATE INDEX private_chunks_document ON vestry.private_chunks (document_id);
CREATE TABLE vestry.shareable_chunks (
  id           uuid PRIMARY KEY,
  document_id  uuid NOT NULL REFERENCES vestry.shareable_documents (id) ON DELETE CASCADE,
  owner        text NOT NULL,
  ordinal      integer NOT NULL,
  start_char   integer NOT NULL,
  end_char     integer NOT NULL,
  content_hash bytea NOT NULL,
  text         text
);
CREATE INDEX shareable_chunks_document ON vestry.shareable_chunks (document_id);
COMMENT ON TABLE vestry.private_chunks IS
  'start_char and end_char are offsets into the document''s text; text is NULL with keep_text=False.';
COMMENT ON TABLE vestry.shareable_chunks IS
  'start_char and end_char are offsets into the document''s text; text is NULL with keep_text=False.';

-- No HNSW index on private vectors: a filtered approximate search silently returns wrong neighbours, and
-- the exact search of one owner's vectors is fast.
CREATE TABLE vestry.private_embeddings (
  chunk_id uuid NOT NULL REFERENCES vestry.private_chunks (id) ON DELETE CASCADE,
  space_id integer NOT NULL REFERENCES vestry.spaces (id),
  owner    text NOT NULL,
  source   text NOT NULL,
  vector   public.halfvec NOT NULL,
  PRIMARY KEY (chunk_id, space_id)
);
CREATE INDEX private_embeddings_owner ON vestry.private_embeddings (owner, space_id, source);

CREATE TABLE vestry.shareable_embeddings (
  chunk_id uuid NOT NULL REFERENCES vestry.shareable_chunks (id) ON DELETE CASCADE,
  space_id integer NOT NULL REFERENCES vestry.spaces (id),
  owner    text NOT NULL,
  source   text NOT NULL,
  vector   public.halfvec NOT NULL,
  PRIMARY KEY (chunk_id, space_id)
) PARTITION BY LIST (space_id);
CREATE INDEX shareable_embeddings_owner ON vestry.shareable_embeddings (owner, space_id, source);
CREATE INDEX shareable_embeddings_source ON vestry.shareable_embeddings (source, space_id);
COMMENT ON TABLE vestry.shareable_embeddings IS
  'One partition per space, each with one HNSW index (vestry.ensure_space_v1).';

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
COMMENT ON TABLE vestry.routes IS
  'Pool and model of a request, as the dispatcher last published them from the policy and the backends'' '
  'health. '''' in task or tier matches every task or tier without a row of its own.';

CREATE TABLE vestry.backend_health (
  backend       text PRIMARY KEY,
  failures      integer NOT NULL DEFAULT 0,
  openings      integer NOT NULL DEFAULT 0,
  reason        text,
  open_until    timestamptz,
  probing_until timestamptz,
  changed_at    timestamptz NOT NULL DEFAULT vestry.clock()
);
COMMENT ON TABLE vestry.backend_health IS
  'Circuit breakers, shared by all workers. Closed: no row, or open_until is NULL. Open: open_until is in '
  'the future. Half-open: open_until is in the past; one caller at a time may probe.';

CREATE TABLE vestry.rate_permits (
  backend text NOT NULL,
  at      timestamptz NOT NULL
);
CREATE INDEX rate_permits_window ON vestry.rate_permits (backend, at);
COMMENT ON TABLE vestry.rate_permits IS
  'One row per permitted call to a rate-limited backend, at the time from which it may be made.';

CREATE TABLE vestry.spending (
  day           date NOT NULL,
  backend       text NOT NULL,
  calls         bigint NOT NULL DEFAULT 0,
  input_tokens  bigint NOT NULL DEFAULT 0,
  output_tokens bigint NOT NULL DEFAULT 0,
  cost          numeric NOT NULL DEFAULT 0,
  PRIMARY KEY (day, backend)
);
COMMENT ON TABLE vestry.spending IS 'Cloud spending in US dollars by day (UTC) and backend.';

CREATE TABLE vestry.egress (
  id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at       timestamptz NOT NULL DEFAULT vestry.clock(),
  privacy  text NOT NULL CHECK (privacy = 'shareable'),
  locality text NOT NULL CHECK (locality = 'cloud'),
  backend  text NOT NULL CHECK (length(backend) BETWEEN 1 AND 100),
  bytes    bigint NOT NULL CHECK (bytes >= 0),
  job_ids  uuid[] NOT NULL CHECK (cardinality(job_ids) >= 1)
);
CREATE INDEX egress_at ON vestry.egress (at);
COMMENT ON TABLE vestry.egress IS
  'Every request to a cloud, recorded before its first byte is sent, with the job ids and no content. Row '
  'security has no policy for UPDATE or DELETE: no role, the schema''s owner included, may change or delete '
  'a row.';
