-- What the build on each host speaks, as it said in its last Hello.
ALTER TABLE agents ADD COLUMN protocol TEXT;                       -- the newest version; NULL before the first Hello
ALTER TABLE agents ADD COLUMN features TEXT NOT NULL DEFAULT '';   -- names, with spaces between them
ALTER TABLE agents ADD COLUMN upgrade_required_ms BIGINT;          -- not served since then, because it is too old
