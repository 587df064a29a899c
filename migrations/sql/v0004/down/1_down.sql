DROP FUNCTION vestry.replay_jobs_v1;
DROP INDEX vestry.jobs_replay;
