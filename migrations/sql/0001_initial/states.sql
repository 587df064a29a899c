-- Refuses every transition that models/states.py does not list; a test holds the two lists equal.
CREATE FUNCTION vestry.guard_transition() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF (OLD.state || '>' || NEW.state) NOT IN (
    'waiting>queued', 'waiting>cancelled', 'waiting>expired', 'waiting>dead',
    'queued>running', 'queued>cancelled', 'queued>expired',
    'running>queued', 'running>succeeded', 'running>dead', 'running>cancelled',
    'running>expired', 'running>superseded') THEN
    RAISE EXCEPTION 'a job cannot go from % to %', OLD.state, NEW.state USING ERRCODE = 'VY005';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER jobs_transition BEFORE UPDATE OF state ON vestry.jobs FOR EACH ROW
WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION vestry.guard_transition();
