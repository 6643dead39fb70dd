-- What breaks naive dump tools: routines, events, triggers, generated columns, bytes that look like syntax.
SET NAMES utf8mb4;
SET sql_mode = 'STRICT_TRANS_TABLES,NO_AUTO_VALUE_ON_ZERO';
SET time_zone = '+00:00';

CREATE TABLE every_type (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  bin VARBINARY(255), fixed BINARY(8), blb LONGBLOB, bits BIT(13), t LONGTEXT CHARACTER SET utf8mb4, latin VARCHAR(50) CHARACTER SET latin1,
  turkish VARCHAR(50) CHARACTER SET utf8mb4 COLLATE utf8mb4_turkish_ci, j JSON, e ENUM('a', 'it''s', 'ü,"'), s SET('x', 'y z', 'é'),
  dec_ DECIMAL(65,30), f FLOAT, d DOUBLE, tiny TINYINT(1), y YEAR, dt DATETIME(6), ts TIMESTAMP(3) NULL, ti TIME(6), da DATE,
  g POINT, u UUID, ip INET6
) AUTO_INCREMENT = 9000000000;
INSERT INTO every_type VALUES
 (0, '', '', '', b'0', '', '', '', '{}', 'a', '', 0, 0, 0, 0, 1901, '1000-01-01 00:00:00.000001', '1970-01-01 00:00:01.001', '-838:59:59.999999', '1000-01-01', POINT(0, 0), '00000000-0000-0000-0000-000000000000', '::'),
 (1, x'00ff0a0d5c27221a', x'00', x'00', b'1111111111111', 'quote\' double" back\\ nl\n cr\r tab\t sub\Z zero\0 end', 'é', 'ıİ', '{"a": "\\n\\"🦭", "b": [1.50, null]}', 'it''s', 'x,y z,é',
  -99999999999999999999999999999999999.999999999999999999999999999999, 3.4e38, -1.7976931348623157e308, 127, 2155, '9999-12-31 23:59:59.999999', '2038-01-19 03:14:07.999', '838:59:59', '9999-12-31', POINT(-1.5, 1e300), 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '::ffff:1.2.3.4'),
 (8999999999, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO every_type (t) VALUES ('日本語 – 🧿 ‮rtl‬ é'), ('-- ; /* DELIMITER $$ */'), ('NULL'), (REPEAT('long ', 200000)), ('\\N');
INSERT INTO every_type (blb) SELECT UNHEX(REPEAT('00FF5C27220A0D1A', 60000));

CREATE TABLE `quo``ted ünï` (`select` INT, `a``b` VARCHAR(20), ` lead` INT, `semi;colon` INT);
INSERT INTO `quo``ted ünï` VALUES (1, 'x', 2, 3);

CREATE TABLE orders (
  id INT NOT NULL PRIMARY KEY, net DECIMAL(12,2), gross DECIMAL(12,2) AS (net * 1.19) STORED, label VARCHAR(60) AS (CONCAT('#', id)) VIRTUAL,
  hidden INT INVISIBLE DEFAULT 7, note TEXT DEFAULT 'it''s', created DATETIME DEFAULT '2001-02-03 04:05:06',
  UNIQUE KEY by_label (label), FULLTEXT KEY words (note), CHECK (net >= 0)
) COMMENT = 'semi; it''s `quoted`';
CREATE TABLE order_lines (id INT PRIMARY KEY, order_id INT NOT NULL, qty INT, CONSTRAINT `fk order` FOREIGN KEY (order_id) REFERENCES orders (id) ON DELETE CASCADE ON UPDATE RESTRICT);
INSERT INTO orders (id, net, hidden) VALUES (1, 1.10, 8), (2, NULL, 9), (3, 99999.99, NULL);
INSERT INTO order_lines VALUES (10, 1, 1), (11, 2, 2), (12, 3, 3);
CREATE TABLE log (id INT AUTO_INCREMENT PRIMARY KEY, what TEXT);
CREATE SEQUENCE numbers START WITH 100 INCREMENT BY 10 MAXVALUE 5000 CYCLE;
SELECT NEXTVAL(numbers), NEXTVAL(numbers);

CREATE TABLE parts (id INT, sold DATE NOT NULL, KEY (id)) PARTITION BY RANGE (YEAR(sold)) SUBPARTITION BY HASH (MONTH(sold)) SUBPARTITIONS 2 (
  PARTITION p_old VALUES LESS THAN (2020), PARTITION p_2020 VALUES LESS THAN (2021), PARTITION p_rest VALUES LESS THAN MAXVALUE);
INSERT INTO parts SELECT seq, DATE '2019-06-01' + INTERVAL seq DAY FROM seq_1_to_2000;
CREATE TABLE versioned (a INT, b TEXT) WITH SYSTEM VERSIONING;
ALTER TABLE versioned DROP SYSTEM VERSIONING;
INSERT INTO versioned VALUES (1, 'x');
CREATE TABLE compressed_rows (id INT PRIMARY KEY, t TEXT) ROW_FORMAT = COMPRESSED KEY_BLOCK_SIZE = 4;
INSERT INTO compressed_rows VALUES (1, REPEAT('z', 60000));

CREATE VIEW small_orders AS SELECT id, note FROM orders WHERE id < 3 WITH LOCAL CHECK OPTION;
CREATE VIEW `view on view` AS SELECT COUNT(*) AS `how many` FROM small_orders;
CREATE ALGORITHM = TEMPTABLE SQL SECURITY INVOKER VIEW totals AS SELECT order_id, SUM(qty) AS qty FROM order_lines GROUP BY order_id;

DELIMITER $$
CREATE TRIGGER after_order AFTER INSERT ON orders FOR EACH ROW BEGIN
  INSERT INTO log (what) VALUES (CONCAT('order ', NEW.id, '; it''s in'));
END$$
CREATE TRIGGER second_order AFTER INSERT ON orders FOR EACH ROW FOLLOWS after_order INSERT INTO log (what) VALUES ('second')$$
CREATE FUNCTION gross(net DECIMAL(12,2), rate DECIMAL(4,2)) RETURNS DECIMAL(12,2) DETERMINISTIC COMMENT 'it''s; gross'
BEGIN
  DECLARE result DECIMAL(12,2); -- a comment; with a semicolon
  SET result = net * rate;
  RETURN result;
END$$
CREATE PROCEDURE `add order`(IN p_id INT, OUT total INT) MODIFIES SQL DATA SQL SECURITY INVOKER
BEGIN
  INSERT INTO orders (id, net) VALUES (p_id, 1);
  SELECT COUNT(*) INTO total FROM orders;
END$$
CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY STARTS '2035-01-01 02:00:00' ON COMPLETION PRESERVE DISABLE COMMENT 'it''s; nightly'
DO BEGIN
  DELETE FROM log WHERE what = ';';
END$$
DELIMITER ;
INSERT INTO orders (id, net) VALUES (4, 5.00);
