-- One role per class of process, each with what it needs and no more. Roles exist before this runs
-- (models/bootstrap.py); the whole matrix stands here.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vestry FROM PUBLIC;
GRANT USAGE ON SCHEMA vestry TO vestry_producer, vestry_private, vestry_shareable, vestry_cloud,
  vestry_control, vestry_monitor;
GRANT EXECUTE ON FUNCTION vestry.clock() TO vestry_producer, vestry_private, vestry_shareable,
  vestry_cloud, vestry_control, vestry_monitor;

-- Producers: the contract functions, states, and one owner's results and documents at a time.
GRANT EXECUTE ON FUNCTION vestry.enqueue_jobs_v1, vestry.ensure_owner_key_v1, vestry.cancel_jobs_v1,
  vestry.delete_documents_v1, vestry.pause_lane_v1 TO vestry_producer;
GRANT SELECT ON vestry.jobs, vestry.lanes, vestry.spaces, vestry.receipts, vestry.owner_keys,
  vestry.private_results, vestry.shareable_results, vestry.private_documents,
  vestry.shareable_documents, vestry.private_chunks, vestry.shareable_chunks,
  vestry.private_embeddings, vestry.shareable_embeddings TO vestry_producer;
GRANT DELETE ON vestry.private_results, vestry.shareable_results TO vestry_producer;

-- Workers.
GRANT SELECT ON vestry.jobs, vestry.lanes, vestry.spaces, vestry.job_documents
  TO vestry_private, vestry_shareable, vestry_cloud;
GRANT UPDATE (state, start_tag, attempt, crashes, quarantined, degraded, lease_id, error_code, error_message,
  run_at, hinted_at, started_at, finished_at) ON vestry.jobs
  TO vestry_private, vestry_shareable, vestry_cloud, vestry_control;
GRANT UPDATE (virtual_time) ON vestry.lanes TO vestry_private, vestry_shareable, vestry_cloud, vestry_control;
GRANT SELECT, INSERT, UPDATE, DELETE ON vestry.leases
  TO vestry_private, vestry_shareable, vestry_cloud, vestry_control;
GRANT SELECT, INSERT, UPDATE ON vestry.receipts TO vestry_private, vestry_shareable, vestry_cloud;
GRANT EXECUTE ON FUNCTION vestry.ensure_space_v1 TO vestry_private, vestry_shareable, vestry_cloud;
GRANT EXECUTE ON FUNCTION vestry.next_start_tag_v1
  TO vestry_private, vestry_shareable, vestry_cloud, vestry_control;

GRANT SELECT ON vestry.owner_keys TO vestry_private;
GRANT SELECT, DELETE ON vestry.private_payloads, vestry.private_blobs TO vestry_private;
GRANT SELECT, INSERT, UPDATE ON vestry.private_results TO vestry_private;
GRANT SELECT, UPDATE ON vestry.private_documents TO vestry_private;
GRANT SELECT, INSERT, UPDATE, DELETE ON vestry.private_chunks, vestry.private_embeddings TO vestry_private;

GRANT SELECT, DELETE ON vestry.shareable_payloads, vestry.shareable_blobs TO vestry_shareable, vestry_cloud;
GRANT SELECT, INSERT, UPDATE ON vestry.shareable_results TO vestry_shareable, vestry_cloud;
GRANT SELECT, UPDATE ON vestry.shareable_documents TO vestry_shareable, vestry_cloud;
GRANT SELECT, INSERT, UPDATE, DELETE ON vestry.shareable_chunks, vestry.shareable_embeddings
  TO vestry_shareable, vestry_cloud;

-- Dispatcher and reconciler: states and clean-up, never content.
GRANT SELECT, DELETE ON vestry.jobs, vestry.idempotency_keys, vestry.job_documents, vestry.receipts TO vestry_control;
GRANT INSERT ON vestry.receipts TO vestry_control;
GRANT SELECT ON vestry.lanes TO vestry_control;
GRANT SELECT (job_id, owner), DELETE ON vestry.private_payloads, vestry.shareable_payloads TO vestry_control;
GRANT SELECT (job_id, name, part), DELETE ON vestry.private_blobs, vestry.shareable_blobs TO vestry_control;
GRANT SELECT (job_id, expires_at), DELETE ON vestry.private_results, vestry.shareable_results TO vestry_control;

GRANT SELECT ON vestry.jobs, vestry.lanes, vestry.leases, vestry.receipts TO vestry_monitor;

-- Row security. FORCE binds the tables' owner too; the contract functions run as it.
DO $$
DECLARE t text; p text;
BEGIN
  FOREACH t IN ARRAY ARRAY['jobs', 'leases', 'receipts', 'job_documents'] LOOP
    EXECUTE format('ALTER TABLE vestry.%I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE vestry.%I FORCE ROW LEVEL SECURITY', t);
    EXECUTE format('CREATE POLICY whole ON vestry.%I TO vestry_owner, vestry_control, vestry_producer, vestry_monitor USING (true) WITH CHECK (true)', t);
    EXECUTE format('CREATE POLICY private_only ON vestry.%I TO vestry_private USING (privacy = ''private'') WITH CHECK (privacy = ''private'')', t);
    EXECUTE format('CREATE POLICY shareable_only ON vestry.%I TO vestry_shareable, vestry_cloud USING (privacy = ''shareable'') WITH CHECK (privacy = ''shareable'')', t);
  END LOOP;
  EXECUTE 'CREATE POLICY cloud_pool ON vestry.jobs AS RESTRICTIVE TO vestry_cloud USING (pool = ''cloud'')';
  EXECUTE 'CREATE POLICY cloud_pool ON vestry.leases AS RESTRICTIVE TO vestry_cloud USING (lane LIKE ''%.cloud'')';

  -- Content: nobody but the owners named by the transaction's own setting, whoever asks.
  FOREACH p IN ARRAY ARRAY['private', 'shareable'] LOOP
    FOREACH t IN ARRAY ARRAY['payloads', 'results', 'blobs', 'documents', 'chunks', 'embeddings'] LOOP
      EXECUTE format('ALTER TABLE vestry.%I ENABLE ROW LEVEL SECURITY', p || '_' || t);
      EXECUTE format('ALTER TABLE vestry.%I FORCE ROW LEVEL SECURITY', p || '_' || t);
      EXECUTE format('CREATE POLICY whole ON vestry.%I TO vestry_owner USING (true) WITH CHECK (true)', p || '_' || t);
      IF t IN ('payloads', 'results', 'blobs') THEN
        EXECUTE format('CREATE POLICY pruning ON vestry.%I TO vestry_control USING (true)', p || '_' || t);
      END IF;
      IF p = 'private' THEN
        EXECUTE format($p$CREATE POLICY owners_named ON vestry.%I TO vestry_private, vestry_producer
          USING (owner = ANY (nullif(current_setting('vestry.owners', true), '')::text[]))
          WITH CHECK (owner = ANY (nullif(current_setting('vestry.owners', true), '')::text[]))$p$, p || '_' || t);
      ELSIF t IN ('documents', 'chunks', 'embeddings') THEN
        -- A library that one service publishes is there for every owner's search.
        EXECUTE format('CREATE POLICY library ON vestry.%I TO vestry_shareable, vestry_cloud, vestry_producer USING (true) WITH CHECK (true)', p || '_' || t);
      ELSE
        EXECUTE format($p$CREATE POLICY owners_named ON vestry.%I TO vestry_shareable, vestry_cloud, vestry_producer
          USING (owner = ANY (nullif(current_setting('vestry.owners', true), '')::text[]))
          WITH CHECK (owner = ANY (nullif(current_setting('vestry.owners', true), '')::text[]))$p$, p || '_' || t);
      END IF;
    END LOOP;
  END LOOP;
END $$;
