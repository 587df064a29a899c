"""The oracle: the producers' history and the database's ledger, written outside the code under test.

Producers append to a file which jobs they committed or rolled back. Effects are recorded by
triggers in the database: every token issued, every transition of a job, every result, receipt and
indexed document, with the process that caused it, in the transaction that causes it. No record is
ever changed or pruned.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg

INSTALL: Final = """
CREATE SCHEMA ledger;
-- actor: the connection's application name, which names the process. version: of 'token', 1 for an
-- exclusive lease; of 'enqueued', 1 for a replay; of 'indexed', the document's
-- generation; of 'job_document', its position in the job.
CREATE TABLE ledger.events (
  n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  what text NOT NULL, subject uuid NOT NULL, token uuid, detail text, version bigint,
  actor text NOT NULL DEFAULT current_setting('application_name'));
CREATE INDEX ON ledger.events (subject, what);

CREATE FUNCTION ledger.note_job() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO ledger.events (what, subject, token, detail, version)
    VALUES ('enqueued', NEW.id, NEW.parent_id, NEW.state, (NEW.replay_of IS NOT NULL)::int);
  ELSIF NEW.state <> OLD.state THEN
    INSERT INTO ledger.events (what, subject, token, detail)
    VALUES ('moved', NEW.id, coalesce(NEW.lease_id, OLD.lease_id), OLD.state || '>' || NEW.state);
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE OF state ON vestry.jobs
FOR EACH ROW EXECUTE FUNCTION ledger.note_job();

CREATE FUNCTION ledger.note_lease() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  INSERT INTO ledger.events (what, subject, token, detail, version)
  VALUES ('token', NEW.id, NEW.id, NEW.worker, NEW.exclusive::int);
  RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT ON vestry.leases
FOR EACH ROW EXECUTE FUNCTION ledger.note_lease();

-- An effect is recorded with the job's token at that moment.
CREATE FUNCTION ledger.note_result() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  INSERT INTO ledger.events (what, subject, token, detail)
  SELECT 'result', NEW.job_id, j.lease_id, j.state FROM vestry.jobs j WHERE j.id = NEW.job_id;
  RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON vestry.private_results
FOR EACH ROW EXECUTE FUNCTION ledger.note_result();
CREATE TRIGGER note AFTER INSERT OR UPDATE ON vestry.shareable_results
FOR EACH ROW EXECUTE FUNCTION ledger.note_result();

CREATE FUNCTION ledger.note_receipt() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  INSERT INTO ledger.events (what, subject, token, detail)
  VALUES ('receipt', NEW.job_id, NEW.lease_id, NEW.outcome);
  RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON vestry.receipts
FOR EACH ROW EXECUTE FUNCTION ledger.note_receipt();

CREATE FUNCTION ledger.note_job_document() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  INSERT INTO ledger.events (what, subject, token, version)
  VALUES ('job_document', NEW.document_id, NEW.job_id, NEW.ordinal);
  RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT ON vestry.job_documents
FOR EACH ROW EXECUTE FUNCTION ledger.note_job_document();

CREATE FUNCTION ledger.note_document() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  IF NEW.indexed_generation IS NOT NULL THEN
    INSERT INTO ledger.events (what, subject, version)
    VALUES ('indexed', NEW.id, NEW.indexed_generation);
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER note AFTER UPDATE OF indexed_generation ON vestry.private_documents
FOR EACH ROW EXECUTE FUNCTION ledger.note_document();
CREATE TRIGGER note AFTER UPDATE OF indexed_generation ON vestry.shareable_documents
FOR EACH ROW EXECUTE FUNCTION ledger.note_document();
"""

_true_time: Final = time.time
"""The unshifted clock: some processes of the laboratory have clocks that are an hour off."""


def install(superuser_url: str) -> None:
    """Create the ledger as the superuser: no role of the system can write it."""
    with psycopg.connect(superuser_url, autocommit=True) as conn:
        conn.execute(INSTALL.encode())
        # A deadlock must be detected before either transaction's timeout.
        conn.execute("ALTER DATABASE vestry SET deadlock_timeout = '20ms'")


class History:
    """Append-only file of JSON lines; several processes may write it.

    Args:
        path: created by the first line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, what: str, **fields: Any) -> None:
        """Append one line, in one write."""
        line = (
            json.dumps({"what": what, "at": _true_time(), **fields}, default=str).encode() + b"\n"
        )
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def read(self) -> Iterator[dict[str, Any]]:
        """Every line so far."""
        if self._path.exists():
            with self._path.open(encoding="utf-8") as lines:
                for line in lines:
                    yield json.loads(line)
