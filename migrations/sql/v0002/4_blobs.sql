-- Store parts of jobs' files in the transaction that enqueued the jobs. A file is at most 64 parts of
-- 1 MiB; private ones are sealed with the owner's key, as payloads are.
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
    RAISE EXCEPTION 'these are no parts of files of these jobs' USING ERRCODE = 'VY003';
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

-- Of the sources named, those that this owner has private documents in: a shareable job that names one
-- of them is refused, since privacy cannot rise after a cloud has read.
CREATE FUNCTION vestry.private_sources_v1(p_owner text, p_sources text[]) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
  SELECT s FROM unnest(p_sources) s
  WHERE EXISTS (SELECT FROM vestry.private_documents d
                WHERE d.owner = p_owner AND d.source = s AND NOT d.deleted)
$$;
