-- The life of hosts and series: replacement, approval, retirement, new epochs.
ALTER TABLE tokens ADD COLUMN replaces TEXT NOT NULL DEFAULT '';          -- the agent whose host is replaced; empty: a new one
ALTER TABLE agents ADD COLUMN wanted_name TEXT NOT NULL DEFAULT '';       -- of a pending host
ALTER TABLE agents ADD COLUMN keep_until_ms BIGINT;                       -- backups of a retired host stay until then
ALTER TABLE agents ADD COLUMN clock_skew_ms BIGINT NOT NULL DEFAULT 0;    -- its clock less the coordinator's, at its last Hello
ALTER TABLE agents ADD COLUMN key_epoch BIGINT NOT NULL DEFAULT 0;        -- counts its replacements: certificates name it
ALTER TABLE series ADD COLUMN leave_epoch BLOB;                           -- a dedup epoch that is not built upon any more
