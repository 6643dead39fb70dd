CREATE TRIGGER agents_labels_added AFTER INSERT ON agents BEGIN
    INSERT INTO agent_labels (agent_id, key, value) SELECT NEW.id, l.key, l.value FROM json_each(NEW.labels) l;
END;
CREATE TRIGGER agents_labels_changed AFTER UPDATE OF labels ON agents WHEN OLD.labels <> NEW.labels BEGIN
    DELETE FROM agent_labels WHERE agent_id = NEW.id;
    INSERT INTO agent_labels (agent_id, key, value) SELECT NEW.id, l.key, l.value FROM json_each(NEW.labels) l;
END;
INSERT INTO agent_labels (agent_id, key, value) SELECT a.id, l.key, l.value FROM agents a, json_each(a.labels) l;

CREATE TRIGGER series_totals_start AFTER INSERT ON series BEGIN
    INSERT INTO series_totals (series_id, agent_id) VALUES (NEW.id, NEW.agent_id);
END;
CREATE TRIGGER series_totals_move AFTER UPDATE OF agent_id ON series WHEN OLD.agent_id <> NEW.agent_id BEGIN
    UPDATE series_totals SET agent_id = NEW.agent_id WHERE series_id = NEW.id;
END;

CREATE TRIGGER packs_total_added AFTER INSERT ON packs WHEN NEW.state NOT IN ('signed', 'missing', 'deleted') BEGIN
    UPDATE series_totals SET packs = packs + 1, stored_bytes = stored_bytes + NEW.size WHERE series_id = NEW.series_id;
END;
CREATE TRIGGER packs_total_comes AFTER UPDATE OF state ON packs
    WHEN OLD.state IN ('signed', 'missing', 'deleted') AND NEW.state NOT IN ('signed', 'missing', 'deleted') BEGIN
    UPDATE series_totals SET packs = packs + 1, stored_bytes = stored_bytes + NEW.size WHERE series_id = NEW.series_id;
END;
CREATE TRIGGER packs_total_goes AFTER UPDATE OF state ON packs
    WHEN OLD.state NOT IN ('signed', 'missing', 'deleted') AND NEW.state IN ('signed', 'missing', 'deleted') BEGIN
    UPDATE series_totals SET packs = packs - 1, stored_bytes = stored_bytes - OLD.size WHERE series_id = OLD.series_id;
END;
CREATE TRIGGER packs_total_removed AFTER DELETE ON packs WHEN OLD.state NOT IN ('signed', 'missing', 'deleted') BEGIN
    UPDATE series_totals SET packs = packs - 1, stored_bytes = stored_bytes - OLD.size WHERE series_id = OLD.series_id;
END;

CREATE TRIGGER backups_total_added AFTER INSERT ON backups WHEN NEW.state = 'committed' BEGIN
    UPDATE series_totals SET backups = backups + 1, raw_bytes = raw_bytes + COALESCE(NEW.raw_bytes, 0),
        last_backup_id = (SELECT b.id FROM backups b
            WHERE b.series_id = NEW.series_id AND b.state = 'committed' ORDER BY b.sequence DESC LIMIT 1),
        last_backup_ms = (SELECT b.created_ms FROM backups b
            WHERE b.series_id = NEW.series_id AND b.state = 'committed' ORDER BY b.sequence DESC LIMIT 1)
        WHERE series_id = NEW.series_id;
END;
CREATE TRIGGER backups_total_comes AFTER UPDATE OF state ON backups
    WHEN OLD.state <> 'committed' AND NEW.state = 'committed' BEGIN
    UPDATE series_totals SET backups = backups + 1, raw_bytes = raw_bytes + COALESCE(NEW.raw_bytes, 0),
        last_backup_id = (SELECT b.id FROM backups b
            WHERE b.series_id = NEW.series_id AND b.state = 'committed' ORDER BY b.sequence DESC LIMIT 1),
        last_backup_ms = (SELECT b.created_ms FROM backups b
            WHERE b.series_id = NEW.series_id AND b.state = 'committed' ORDER BY b.sequence DESC LIMIT 1)
        WHERE series_id = NEW.series_id;
END;
CREATE TRIGGER backups_total_goes AFTER UPDATE OF state ON backups
    WHEN OLD.state = 'committed' AND NEW.state <> 'committed' BEGIN
    UPDATE series_totals SET backups = backups - 1, raw_bytes = raw_bytes - COALESCE(OLD.raw_bytes, 0),
        last_backup_id = (SELECT b.id FROM backups b
            WHERE b.series_id = OLD.series_id AND b.state = 'committed' ORDER BY b.sequence DESC LIMIT 1),
        last_backup_ms = (SELECT b.created_ms FROM backups b
            WHERE b.series_id = OLD.series_id AND b.state = 'committed' ORDER BY b.sequence DESC LIMIT 1)
        WHERE series_id = OLD.series_id;
END;
CREATE TRIGGER backups_total_removed AFTER DELETE ON backups WHEN OLD.state = 'committed' BEGIN
    UPDATE series_totals SET backups = backups - 1, raw_bytes = raw_bytes - COALESCE(OLD.raw_bytes, 0),
        last_backup_id = (SELECT b.id FROM backups b
            WHERE b.series_id = OLD.series_id AND b.state = 'committed' ORDER BY b.sequence DESC LIMIT 1),
        last_backup_ms = (SELECT b.created_ms FROM backups b
            WHERE b.series_id = OLD.series_id AND b.state = 'committed' ORDER BY b.sequence DESC LIMIT 1)
        WHERE series_id = OLD.series_id;
END;
