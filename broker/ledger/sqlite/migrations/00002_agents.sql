-- Agents whose state somebody has set. "since" is integer nanoseconds since 1970, "record" the index of the audit record.

-- +goose Up
CREATE TABLE agents (
  id      TEXT    NOT NULL PRIMARY KEY,
  state   TEXT    NOT NULL,
  since   INTEGER NOT NULL,
  set_by  TEXT    NOT NULL,
  record  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX agents_state ON agents (state, id);
