REVOKE ALL ON FUNCTION vestry.rewrap_owner_keys_v1, vestry.retire_key_v1, vestry.guard_key,
  vestry.guard_owners, vestry.standing_owners_v1, vestry.forget_owner_v1, vestry.await_enqueues_v1,
  vestry.forget_content_v1, vestry.record_egress_v1 FROM PUBLIC;

-- The operator: `vestry keys`, `forget` and `audit`. Wrapped keys, never content.
GRANT USAGE ON SCHEMA vestry TO vestry_operator;
GRANT EXECUTE ON FUNCTION vestry.clock, vestry.rewrap_owner_keys_v1, vestry.retire_key_v1,
  vestry.forget_owner_v1, vestry.await_enqueues_v1, vestry.forget_content_v1, vestry.cancel_jobs_v1
  TO vestry_operator;
GRANT SELECT ON vestry.owners, vestry.owner_keys, vestry.wrapping_keys, vestry.jobs, vestry.receipts,
  vestry.egress TO vestry_operator;

GRANT EXECUTE ON FUNCTION vestry.standing_owners_v1 TO vestry_private, vestry_shareable, vestry_cloud;
GRANT EXECUTE ON FUNCTION vestry.record_egress_v1 TO vestry_cloud;
GRANT SELECT ON vestry.egress TO vestry_monitor;

DO $$
DECLARE
  t text; p text;
  -- A sub-select is worked out once a query, not once a row.
  named CONSTANT text :=
    '(SELECT nullif(current_setting(''vestry.owners'', true), ''''))::text[]';
  one CONSTANT text :=
    '(SELECT CASE WHEN cardinality(s.n) = 1 THEN s.n[1] END '
    'FROM (SELECT nullif(current_setting(''vestry.owners'', true), '''')::text[] AS n) s)';
BEGIN
  FOREACH t IN ARRAY ARRAY['owners', 'owner_keys', 'idempotency_keys', 'egress'] LOOP
    EXECUTE format('ALTER TABLE vestry.%I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE vestry.%I FORCE ROW LEVEL SECURITY', t);
    IF t <> 'egress' THEN
      EXECUTE format('CREATE POLICY whole ON vestry.%I TO vestry_owner USING (true) WITH CHECK (true)', t);
    END IF;
  END LOOP;
  CREATE POLICY looking ON vestry.egress FOR SELECT
    TO vestry_owner, vestry_operator, vestry_monitor USING (true);
  CREATE POLICY adding ON vestry.egress FOR INSERT TO vestry_owner WITH CHECK (true);
  CREATE POLICY pruning ON vestry.idempotency_keys TO vestry_control USING (true);
  FOREACH t IN ARRAY ARRAY['owners', 'owner_keys', 'jobs', 'receipts'] LOOP
    EXECUTE format('CREATE POLICY operating ON vestry.%I FOR SELECT TO vestry_operator USING (true)', t);
  END LOOP;

  -- A worker names the owners of its batch. A producer names one: whatever a query of theirs forgets
  -- to ask for, the database answers for that one alone.
  FOREACH p IN ARRAY ARRAY['private', 'shareable'] LOOP
    FOREACH t IN ARRAY ARRAY['payloads', 'results', 'blobs', 'documents', 'chunks', 'embeddings'] LOOP
      CONTINUE WHEN p = 'shareable' AND t IN ('documents', 'chunks', 'embeddings');
      EXECUTE format('DROP POLICY owners_named ON vestry.%I', p || '_' || t);
      EXECUTE format(
        'CREATE POLICY owners_named ON vestry.%I TO %s USING (owner = ANY (%s)) WITH CHECK (owner = ANY (%s))',
        p || '_' || t, CASE p WHEN 'private' THEN 'vestry_private' ELSE 'vestry_shareable, vestry_cloud' END,
        named, named);
      EXECUTE format(
        'CREATE POLICY one_owner ON vestry.%I TO vestry_producer USING (owner = %s) WITH CHECK (owner = %s)',
        p || '_' || t, one, one);
    END LOOP;
  END LOOP;
  EXECUTE format('CREATE POLICY owners_named ON vestry.owner_keys FOR SELECT TO vestry_private USING (owner = ANY (%s))', named);
  EXECUTE format('CREATE POLICY one_owner ON vestry.owner_keys FOR SELECT TO vestry_producer USING (owner = %s)', one);
END $$;
