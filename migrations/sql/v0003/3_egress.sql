-- Every request to a cloud, written before its first byte leaves. Of what it was about, only which jobs.
-- Nobody may change or delete a row, the schema's owner included: no policy of theirs covers it.
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

-- Note a request that is about to be made for jobs under a lease. Time and class are the database's own,
-- the class as it stands on the jobs. Refused where a cloud may not see one of them, and where nobody
-- waits for any of them any more: then nothing is sent.
CREATE FUNCTION vestry.record_egress_v1(p_backend text, p_bytes bigint, p_jobs uuid[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, vestry, pg_temp
AS $$
DECLARE v_id bigint;
BEGIN
  IF coalesce(cardinality(p_jobs), 0) = 0 OR EXISTS (
       SELECT FROM unnest(p_jobs) u(id) LEFT JOIN jobs j ON j.id = u.id
       WHERE (j.privacy = 'shareable' AND j.pool = 'cloud') IS NOT TRUE) THEN
    RAISE EXCEPTION 'no cloud may be called for these jobs' USING ERRCODE = 'VY007';
  END IF;
  IF NOT EXISTS (SELECT FROM jobs j WHERE j.id = ANY (p_jobs) AND j.state = 'running') THEN
    RAISE EXCEPTION 'no job of the request is running any more' USING ERRCODE = 'VY008';
  END IF;
  INSERT INTO egress (privacy, locality, backend, bytes, job_ids)
  SELECT max(j.privacy), 'cloud', p_backend, p_bytes, p_jobs FROM jobs j WHERE j.id = ANY (p_jobs)
  RETURNING id INTO v_id;
  RETURN v_id;
END $$;
