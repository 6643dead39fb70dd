-- Roles of the cluster, so that owners and grants have somebody to belong to.
CREATE ROLE "Shop Owner" NOLOGIN;
CREATE ROLE till_reader LOGIN PASSWORD 'kept-as-a-verifier' CONNECTION LIMIT 7 VALID UNTIL '2039-01-01 00:00:00+00';
CREATE ROLE "ünïcode""quote" NOLOGIN;
GRANT "Shop Owner" TO till_reader;
ALTER ROLE till_reader SET search_path TO "Mixed Case", public;
COMMENT ON ROLE till_reader IS 'reads; it''s quoted';
