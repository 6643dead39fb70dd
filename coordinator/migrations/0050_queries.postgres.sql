CREATE FUNCTION agents_labels_follow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM agent_labels WHERE agent_id = NEW.id;
    INSERT INTO agent_labels (agent_id, key, value) SELECT NEW.id, l.key, l.value FROM json_each_text(NEW.labels::json) l;
    RETURN NULL;
END
$$;
CREATE TRIGGER agents_labels_added AFTER INSERT ON agents FOR EACH ROW EXECUTE FUNCTION agents_labels_follow();
CREATE TRIGGER agents_labels_changed AFTER UPDATE OF labels ON agents FOR EACH ROW
    WHEN (OLD.labels <> NEW.labels) EXECUTE FUNCTION agents_labels_follow();
INSERT INTO agent_labels (agent_id, key, value)
    SELECT a.id, l.key, l.value FROM agents a, json_each_text(a.labels::json) l;

CREATE FUNCTION series_totals_follow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO series_totals (series_id, agent_id) VALUES (NEW.id, NEW.agent_id);
    ELSE
        UPDATE series_totals SET agent_id = NEW.agent_id WHERE series_id = NEW.id;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER series_totals_start AFTER INSERT ON series FOR EACH ROW EXECUTE FUNCTION series_totals_follow();
CREATE TRIGGER series_totals_move AFTER UPDATE OF agent_id ON series FOR EACH ROW
    WHEN (OLD.agent_id <> NEW.agent_id) EXECUTE FUNCTION series_totals_follow();

CREATE FUNCTION packs_total_come() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE series_totals SET packs = packs + 1, stored_bytes = stored_bytes + NEW.size WHERE series_id = NEW.series_id;
    RETURN NULL;
END
$$;
CREATE FUNCTION packs_total_go() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE series_totals SET packs = packs - 1, stored_bytes = stored_bytes - OLD.size WHERE series_id = OLD.series_id;
    RETURN NULL;
END
$$;
CREATE TRIGGER packs_total_added AFTER INSERT ON packs FOR EACH ROW
    WHEN (NEW.state NOT IN ('signed', 'missing', 'deleted')) EXECUTE FUNCTION packs_total_come();
CREATE TRIGGER packs_total_comes AFTER UPDATE OF state ON packs FOR EACH ROW
    WHEN (OLD.state IN ('signed', 'missing', 'deleted') AND NEW.state NOT IN ('signed', 'missing', 'deleted'))
    EXECUTE FUNCTION packs_total_come();
CREATE TRIGGER packs_total_goes AFTER UPDATE OF state ON packs FOR EACH ROW
    WHEN (OLD.state NOT IN ('signed', 'missing', 'deleted') AND NEW.state IN ('signed', 'missing', 'deleted'))
    EXECUTE FUNCTION packs_total_go();
CREATE TRIGGER packs_total_removed AFTER DELETE ON packs FOR EACH ROW
    WHEN (OLD.state NOT IN ('signed', 'missing', 'deleted')) EXECUTE FUNCTION packs_total_go();

-- The newest is looked up under the lock that the first update takes.
CREATE FUNCTION backups_total_follow(of_series TEXT, more BIGINT, raw BIGINT) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE series_totals SET backups = backups + more, raw_bytes = raw_bytes + raw WHERE series_id = of_series;
    UPDATE series_totals SET
        last_backup_id = (SELECT b.id FROM backups b
            WHERE b.series_id = of_series AND b.state = 'committed' ORDER BY b.sequence DESC LIMIT 1),
        last_backup_ms = (SELECT b.created_ms FROM backups b
            WHERE b.series_id = of_series AND b.state = 'committed' ORDER BY b.sequence DESC LIMIT 1)
        WHERE series_id = of_series;
END
$$;
CREATE FUNCTION backups_total_come() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM backups_total_follow(NEW.series_id, 1, COALESCE(NEW.raw_bytes, 0));
    RETURN NULL;
END
$$;
CREATE FUNCTION backups_total_go() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM backups_total_follow(OLD.series_id, -1, -COALESCE(OLD.raw_bytes, 0));
    RETURN NULL;
END
$$;
CREATE TRIGGER backups_total_added AFTER INSERT ON backups FOR EACH ROW
    WHEN (NEW.state = 'committed') EXECUTE FUNCTION backups_total_come();
CREATE TRIGGER backups_total_comes AFTER UPDATE OF state ON backups FOR EACH ROW
    WHEN (OLD.state <> 'committed' AND NEW.state = 'committed') EXECUTE FUNCTION backups_total_come();
CREATE TRIGGER backups_total_goes AFTER UPDATE OF state ON backups FOR EACH ROW
    WHEN (OLD.state = 'committed' AND NEW.state <> 'committed') EXECUTE FUNCTION backups_total_go();
CREATE TRIGGER backups_total_removed AFTER DELETE ON backups FOR EACH ROW
    WHEN (OLD.state = 'committed') EXECUTE FUNCTION backups_total_go();
