REVOKE ALL ON FUNCTION vestry.enqueue_jobs_v2, vestry.route_v1, vestry.carry_down, vestry.lock_roots_v1,
  vestry.upstream_v1, vestry.reroute_jobs_v1, vestry.move_jobs_v1, vestry.backend_failed_v1, vestry.backend_succeeded_v1,
  vestry.backend_released_v1,  vestry.backend_probe_v1, vestry.rate_take_v1, vestry.store_blobs_v1, vestry.private_sources_v1 FROM PUBLIC;

GRANT EXECUTE ON FUNCTION vestry.enqueue_jobs_v2, vestry.store_blobs_v1, vestry.private_sources_v1
  TO vestry_producer;
GRANT EXECUTE ON FUNCTION vestry.lock_roots_v1, vestry.upstream_v1, vestry.backend_failed_v1, vestry.backend_succeeded_v1,
  vestry.backend_released_v1,  vestry.backend_probe_v1, vestry.rate_take_v1 TO vestry_private, vestry_shareable, vestry_cloud;
-- Nothing private can change its pool: there is no other for it.
GRANT EXECUTE ON FUNCTION vestry.reroute_jobs_v1 TO vestry_shareable, vestry_cloud;
GRANT EXECUTE ON FUNCTION vestry.move_jobs_v1 TO vestry_control;
GRANT UPDATE (tried_models) ON vestry.jobs TO vestry_private, vestry_shareable, vestry_cloud;

GRANT SELECT ON vestry.backend_health TO vestry_producer, vestry_private, vestry_shareable, vestry_cloud,
  vestry_control, vestry_monitor;
GRANT SELECT ON vestry.spending TO vestry_producer, vestry_shareable, vestry_cloud, vestry_control,
  vestry_monitor;
GRANT INSERT, UPDATE ON vestry.spending TO vestry_shareable, vestry_cloud;
GRANT SELECT ON vestry.routes TO vestry_producer, vestry_monitor;
GRANT SELECT, INSERT, UPDATE, DELETE ON vestry.routes TO vestry_control;

-- A grounded answer reads the library beside the owner's own passages.
GRANT SELECT ON vestry.shareable_documents, vestry.shareable_chunks, vestry.shareable_embeddings
  TO vestry_private;
-- A job that follows another reads its result, and a replay what the job was given.
GRANT SELECT ON vestry.private_payloads, vestry.shareable_payloads, vestry.private_blobs,
  vestry.shareable_blobs TO vestry_producer;
CREATE POLICY library_private ON vestry.shareable_documents TO vestry_private USING (true) WITH CHECK (false);
CREATE POLICY library_private ON vestry.shareable_chunks TO vestry_private USING (true) WITH CHECK (false);
CREATE POLICY library_private ON vestry.shareable_embeddings TO vestry_private USING (true) WITH CHECK (false);
