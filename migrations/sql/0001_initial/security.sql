-- Grants and row security: one role per class of process, each with the rights it needs and no other. The
-- roles are created before this runs (models/bootstrap.py).

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vestry FROM PUBLIC;
GRANT USAGE ON SCHEMA vestry TO vestry_producer, vestry_private, vestry_shareable, vestry_cloud,
  vestry_control, vestry_monitor, vestry_operator;
GRANT EXECUTE ON FUNCTION vestry.clock TO vestry_producer, vestry_private, vestry_shareable, vestry_cloud,
  vestry_control, vestry_monitor, vestry_operator;
GRANT EXECUTE ON FUNCTION vestry.breakers_v1 TO vestry_producer, vestry_private, vestry_shareable,
  vestry_cloud, vestry_control, vestry_monitor;
-- Every process compares the schema's revision with the one that it needs.
GRANT SELECT ON vestry.alembic_version TO vestry_producer, vestry_private, vestry_shareable, vestry_cloud,
  vestry_control, vestry_monitor, vestry_operator;

-- Producers: the contract functions, states, and one owner's results and documents at a time. A job that
-- follows another reads its result, and a replay reads the payload of the old job.
GRANT EXECUTE ON FUNCTION vestry.enqueue_jobs_v1, vestry.store_blobs_v1, vestry.private_sources_v1,
  vestry.replay_jobs_v1, vestry.ensure_owner_key_v1, vestry.cancel_jobs_v1, vestry.delete_documents_v1,
  vestry.pause_lane_v1 TO vestry_producer;
GRANT SELECT ON vestry.jobs, vestry.lanes, vestry.spaces, vestry.receipts, vestry.owner_keys,
  vestry.private_payloads, vestry.shareable_payloads, vestry.private_blobs, vestry.shareable_blobs,
  vestry.private_results, vestry.shareable_results, vestry.private_documents,
  vestry.shareable_documents, vestry.private_chunks, vestry.shareable_chunks,
  vestry.private_embeddings, vestry.shareable_embeddings, vestry.routes, vestry.backend_health,
  vestry.spending TO vestry_producer;
GRANT DELETE ON vestry.private_results, vestry.shareable_results TO vestry_producer;

-- Workers.
GRANT SELECT ON vestry.jobs, vestry.lanes, vestry.spaces, vestry.job_documents, vestry.backend_health
  TO vestry_private, vestry_shareable, vestry_cloud;
GRANT UPDATE (tried_models) ON vestry.jobs TO vestry_private, vestry_shareable, vestry_cloud;
GRANT SELECT, INSERT, UPDATE ON vestry.receipts TO vestry_private, vestry_shareable, vestry_cloud;
GRANT EXECUTE ON FUNCTION vestry.ensure_space_v1, vestry.lock_roots_v1, vestry.upstream_v1,
  vestry.active_owners_v1, vestry.backend_failed_v1, vestry.backend_succeeded_v1,
  vestry.backend_released_v1, vestry.backend_probe_v1, vestry.acquire_permit_v1
  TO vestry_private, vestry_shareable, vestry_cloud;

-- Workers, dispatcher and reconciler change a job's state.
GRANT UPDATE (state, start_tag, attempt, crashes, quarantined, degraded, lease_id, error_code,
  error_message, run_at, hinted_at, started_at, finished_at) ON vestry.jobs
  TO vestry_private, vestry_shareable, vestry_cloud, vestry_control;
GRANT UPDATE (virtual_time) ON vestry.lanes
  TO vestry_private, vestry_shareable, vestry_cloud, vestry_control;
GRANT SELECT, INSERT, UPDATE, DELETE ON vestry.leases
  TO vestry_private, vestry_shareable, vestry_cloud, vestry_control;
GRANT EXECUTE ON FUNCTION vestry.next_start_tag_v1
  TO vestry_private, vestry_shareable, vestry_cloud, vestry_control;

-- Private workers. A grounded answer also reads the shareable library.
GRANT SELECT ON vestry.owner_keys TO vestry_private;
GRANT SELECT, DELETE ON vestry.private_payloads, vestry.private_blobs TO vestry_private;
GRANT SELECT, INSERT, UPDATE ON vestry.private_results TO vestry_private;
GRANT SELECT, UPDATE ON vestry.private_documents TO vestry_private;
GRANT SELECT, INSERT, UPDATE, DELETE ON vestry.private_chunks, vestry.private_embeddings
  TO vestry_private;
GRANT SELECT ON vestry.shareable_documents, vestry.shareable_chunks, vestry.shareable_embeddings
  TO vestry_private;

-- Shareable and cloud workers. A private job has no other pool, so only these reroute.
GRANT SELECT, DELETE ON vestry.shareable_payloads, vestry.shareable_blobs TO vestry_shareable, vestry_cloud;
GRANT SELECT, INSERT, UPDATE ON vestry.shareable_results TO vestry_shareable, vestry_cloud;
GRANT SELECT, UPDATE ON vestry.shareable_documents TO vestry_shareable, vestry_cloud;
GRANT SELECT, INSERT, UPDATE, DELETE ON vestry.shareable_chunks, vestry.shareable_embeddings
  TO vestry_shareable, vestry_cloud;
GRANT SELECT, INSERT, UPDATE ON vestry.spending TO vestry_shareable, vestry_cloud;
GRANT EXECUTE ON FUNCTION vestry.reroute_jobs_v1 TO vestry_shareable, vestry_cloud;
GRANT EXECUTE ON FUNCTION vestry.record_egress_v1 TO vestry_cloud;

-- Dispatcher and reconciler: states and clean-up, never content.
GRANT SELECT, DELETE ON vestry.jobs, vestry.idempotency_keys, vestry.job_documents, vestry.receipts
  TO vestry_control;
GRANT INSERT ON vestry.receipts TO vestry_control;
GRANT SELECT ON vestry.lanes, vestry.backend_health, vestry.spending TO vestry_control;
GRANT SELECT, INSERT, UPDATE, DELETE ON vestry.routes TO vestry_control;
GRANT EXECUTE ON FUNCTION vestry.move_jobs_v1 TO vestry_control;
GRANT SELECT (job_id, owner), DELETE ON vestry.private_payloads, vestry.shareable_payloads
  TO vestry_control;
GRANT SELECT (job_id, name, part), DELETE ON vestry.private_blobs, vestry.shareable_blobs
  TO vestry_control;
GRANT SELECT (job_id, expires_at), DELETE ON vestry.private_results, vestry.shareable_results
  TO vestry_control;

-- Monitoring.
GRANT SELECT ON vestry.jobs, vestry.lanes, vestry.leases, vestry.receipts, vestry.backend_health,
  vestry.routes, vestry.spending, vestry.egress TO vestry_monitor;

-- The operator (`vestry keys`, `forget` and `audit`): wrapped keys, never content.
GRANT EXECUTE ON FUNCTION vestry.rewrap_owner_keys_v1, vestry.retire_key_v1, vestry.forget_owner_v1,
  vestry.await_enqueues_v1, vestry.forget_content_v1, vestry.cancel_jobs_v1 TO vestry_operator;
GRANT SELECT ON vestry.owners, vestry.owner_keys, vestry.wrapping_keys, vestry.jobs, vestry.receipts,
  vestry.egress TO vestry_operator;

-- Row security. FORCE binds the tables' owner too, as which the contract functions run.
DO $$
DECLARE
  p text; t text; worker text;
  -- The owners named by the setting vestry.owners. A sub-select is evaluated once per query, not per row.
  named CONSTANT text :=
    '(SELECT nullif(current_setting(''vestry.owners'', true), ''''))::text[]';
  -- The owner named by it, if it names exactly one.
  one CONSTANT text :=
    '(SELECT CASE WHEN cardinality(s.n) = 1 THEN s.n[1] END '
    'FROM (SELECT nullif(current_setting(''vestry.owners'', true), '''')::text[] AS n) s)';
BEGIN
  -- Jobs and their receipts: a worker sees its own privacy class.
  FOREACH t IN ARRAY ARRAY['jobs', 'leases', 'receipts', 'job_documents'] LOOP
    EXECUTE format('ALTER TABLE vestry.%I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE vestry.%I FORCE ROW LEVEL SECURITY', t);
    EXECUTE format('CREATE POLICY all_rows ON vestry.%I TO vestry_owner, vestry_control, vestry_producer, '
                   'vestry_monitor USING (true) WITH CHECK (true)', t);
    EXECUTE format('CREATE POLICY private_only ON vestry.%I TO vestry_private '
                   'USING (privacy = ''private'') WITH CHECK (privacy = ''private'')', t);
    EXECUTE format('CREATE POLICY shareable_only ON vestry.%I TO vestry_shareable, vestry_cloud '
                   'USING (privacy = ''shareable'') WITH CHECK (privacy = ''shareable'')', t);
  END LOOP;
  CREATE POLICY cloud_pool ON vestry.jobs AS RESTRICTIVE TO vestry_cloud USING (pool = 'cloud');
  CREATE POLICY cloud_pool ON vestry.leases AS RESTRICTIVE TO vestry_cloud USING (lane LIKE '%.cloud');

  -- Content. A worker sees the owners of its batch. A producer sees one owner: even a query without a
  -- condition on the owner returns only that owner's rows.
  FOREACH p IN ARRAY ARRAY['private', 'shareable'] LOOP
    worker := CASE p WHEN 'private' THEN 'vestry_private' ELSE 'vestry_shareable, vestry_cloud' END;
    FOREACH t IN ARRAY ARRAY['payloads', 'results', 'blobs', 'documents', 'chunks', 'embeddings'] LOOP
      EXECUTE format('ALTER TABLE vestry.%I ENABLE ROW LEVEL SECURITY', p || '_' || t);
      EXECUTE format('ALTER TABLE vestry.%I FORCE ROW LEVEL SECURITY', p || '_' || t);
      EXECUTE format('CREATE POLICY all_rows ON vestry.%I TO vestry_owner '
                     'USING (true) WITH CHECK (true)', p || '_' || t);
      IF t IN ('payloads', 'results', 'blobs') THEN
        EXECUTE format('CREATE POLICY pruning ON vestry.%I TO vestry_control USING (true)', p || '_' || t);
      END IF;
      IF p = 'shareable' AND t IN ('documents', 'chunks', 'embeddings') THEN
        -- A library that one service publishes is searched by every owner.
        EXECUTE format('CREATE POLICY library ON vestry.%I TO vestry_shareable, vestry_cloud, '
                       'vestry_producer USING (true) WITH CHECK (true)', p || '_' || t);
        EXECUTE format('CREATE POLICY library_private ON vestry.%I TO vestry_private '
                       'USING (true) WITH CHECK (false)', p || '_' || t);
      ELSE
        EXECUTE format('CREATE POLICY owners_named ON vestry.%I TO %s '
                       'USING (owner = ANY (%s)) WITH CHECK (owner = ANY (%s))',
                       p || '_' || t, worker, named, named);
        EXECUTE format('CREATE POLICY one_owner ON vestry.%I TO vestry_producer '
                       'USING (owner = %s) WITH CHECK (owner = %s)', p || '_' || t, one, one);
      END IF;
    END LOOP;
  END LOOP;

  -- Owners, keys and the record of requests to clouds.
  FOREACH t IN ARRAY ARRAY['owners', 'owner_keys', 'idempotency_keys', 'egress'] LOOP
    EXECUTE format('ALTER TABLE vestry.%I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE vestry.%I FORCE ROW LEVEL SECURITY', t);
    IF t <> 'egress' THEN
      EXECUTE format('CREATE POLICY all_rows ON vestry.%I TO vestry_owner '
                     'USING (true) WITH CHECK (true)', t);
    END IF;
  END LOOP;
  EXECUTE format('CREATE POLICY owners_named ON vestry.owner_keys FOR SELECT TO vestry_private '
                 'USING (owner = ANY (%s))', named);
  EXECUTE format('CREATE POLICY one_owner ON vestry.owner_keys FOR SELECT TO vestry_producer '
                 'USING (owner = %s)', one);
  CREATE POLICY pruning ON vestry.idempotency_keys TO vestry_control USING (true);
  CREATE POLICY reading ON vestry.egress FOR SELECT
    TO vestry_owner, vestry_operator, vestry_monitor USING (true);
  CREATE POLICY appending ON vestry.egress FOR INSERT TO vestry_owner WITH CHECK (true);
  FOREACH t IN ARRAY ARRAY['owners', 'owner_keys', 'jobs', 'receipts'] LOOP
    EXECUTE format('CREATE POLICY operator ON vestry.%I FOR SELECT TO vestry_operator USING (true)', t);
  END LOOP;
END $$;
