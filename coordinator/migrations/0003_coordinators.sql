-- Several coordinators on one database: who leads.

-- What one coordinator at a time does. Times are the database's own. An epoch is never given twice.
CREATE TABLE leases (
    name       TEXT PRIMARY KEY NOT NULL,
    owner      TEXT NOT NULL,             -- the coordinator's process; empty: nobody
    epoch      BIGINT NOT NULL,           -- of the owner's term
    expires_ms BIGINT NOT NULL
);
