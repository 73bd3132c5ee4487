-- Whether this file is an older copy of the ledger, and nobody has confirmed yet that it is the one to go on with. A backup
-- is made with this row; a start that finds a newer checkpoint elsewhere adds it. "at" is integer nanoseconds since 1970.

-- +goose Up
CREATE TABLE restored (
  one    INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
  found  TEXT    NOT NULL,
  at     INTEGER NOT NULL,
  known  BLOB
) STRICT;
