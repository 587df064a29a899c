DO $$
DECLARE t text; p text;
BEGIN
  FOREACH p IN ARRAY ARRAY['private', 'shareable'] LOOP
    FOREACH t IN ARRAY ARRAY['payloads', 'results', 'blobs', 'documents', 'chunks', 'embeddings'] LOOP
      CONTINUE WHEN p = 'shareable' AND t IN ('documents', 'chunks', 'embeddings');
      EXECUTE format('DROP POLICY owners_named ON vestry.%I', p || '_' || t);
      EXECUTE format('DROP POLICY one_owner ON vestry.%I', p || '_' || t);
      EXECUTE format($p$CREATE POLICY owners_named ON vestry.%I TO %s, vestry_producer
        USING (owner = ANY (nullif(current_setting('vestry.owners', true), '')::text[]))
        WITH CHECK (owner = ANY (nullif(current_setting('vestry.owners', true), '')::text[]))$p$,
        p || '_' || t, CASE p WHEN 'private' THEN 'vestry_private' ELSE 'vestry_shareable, vestry_cloud' END);
    END LOOP;
  END LOOP;
  FOREACH t IN ARRAY ARRAY['owners', 'owner_keys', 'jobs', 'receipts'] LOOP
    EXECUTE format('DROP POLICY operating ON vestry.%I', t);
  END LOOP;
  DROP POLICY owners_named ON vestry.owner_keys;
  DROP POLICY one_owner ON vestry.owner_keys;
  DROP POLICY pruning ON vestry.idempotency_keys;
  FOREACH t IN ARRAY ARRAY['owners', 'owner_keys', 'idempotency_keys'] LOOP
    EXECUTE format('DROP POLICY whole ON vestry.%I', t);
    EXECUTE format('ALTER TABLE vestry.%I NO FORCE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE vestry.%I DISABLE ROW LEVEL SECURITY', t);
  END LOOP;
END $$;

REVOKE ALL ON ALL TABLES IN SCHEMA vestry FROM vestry_operator;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vestry FROM vestry_operator;
REVOKE ALL ON SCHEMA vestry FROM vestry_operator;

DROP FUNCTION vestry.record_egress_v1;
DROP TABLE vestry.egress;

DROP FUNCTION vestry.forget_content_v1;
DROP FUNCTION vestry.await_enqueues_v1;
DROP FUNCTION vestry.forget_owner_v1;
DROP FUNCTION vestry.standing_owners_v1;
DROP TRIGGER jobs_owner ON vestry.jobs;
DROP TRIGGER owner_keys_owner ON vestry.owner_keys;
DROP TRIGGER private_blobs_owner ON vestry.private_blobs;
DROP TRIGGER shareable_blobs_owner ON vestry.shareable_blobs;
DROP FUNCTION vestry.guard_owners;

DROP TRIGGER owner_keys_current ON vestry.owner_keys;
DROP FUNCTION vestry.guard_key;
DROP FUNCTION vestry.retire_key_v1;
DROP FUNCTION vestry.rewrap_owner_keys_v1;
DROP TABLE vestry.wrapping_keys;
