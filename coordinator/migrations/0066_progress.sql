-- How far runs are, for coordinators that do not hold the session: said every few seconds at most, and only where there may be several.
CREATE TABLE run_progress (
    run_id  TEXT PRIMARY KEY NOT NULL,
    attempt BIGINT NOT NULL,
    said    TEXT NOT NULL,               -- JSON
    said_ms BIGINT NOT NULL              -- by the database's clock
);
CREATE INDEX run_progress_said ON run_progress (said_ms);
