-- Drops everything in the schema except Alembic's own table.
DO $$
DECLARE r record;
BEGIN
  FOR r IN SELECT c.relname FROM pg_class c
           WHERE c.relnamespace = 'vestry'::regnamespace AND c.relkind IN ('r', 'p')
             AND NOT c.relispartition AND c.relname <> 'alembic_version' LOOP
    EXECUTE format('DROP TABLE vestry.%I CASCADE', r.relname);
  END LOOP;
  FOR r IN SELECT p.oid::regprocedure AS f FROM pg_proc p
           WHERE p.pronamespace = 'vestry'::regnamespace LOOP
    EXECUTE format('DROP FUNCTION %s CASCADE', r.f);
  END LOOP;
END $$;
REVOKE ALL ON vestry.alembic_version FROM vestry_producer, vestry_private, vestry_shareable, vestry_cloud,
  vestry_control, vestry_monitor, vestry_operator;
REVOKE ALL ON SCHEMA vestry FROM vestry_producer, vestry_private, vestry_shareable, vestry_cloud,
  vestry_control, vestry_monitor, vestry_operator;
