-- Bodies are JSON of the Go structs; columns beside them are what is searched by or made a condition. Times are integer
-- nanoseconds since 1970. "due" is when the teardown loop looks at a row: the later of next_at and the end of a claim;
-- 9223372036854775807 where nothing is planned, NULL once the row is final, which keeps it out of the partial indexes.

-- +goose Up
CREATE TABLE tasks (
  id          BLOB    NOT NULL PRIMARY KEY,
  short_name  TEXT    NOT NULL UNIQUE,
  agent       TEXT    NOT NULL,
  request_id  TEXT    NOT NULL,
  state       TEXT    NOT NULL,
  open        INTEGER NOT NULL,
  due         INTEGER,
  body        BLOB    NOT NULL
) STRICT;
CREATE INDEX tasks_agent ON tasks (agent, open, id);
CREATE INDEX tasks_due ON tasks (due, state) WHERE due IS NOT NULL;
CREATE UNIQUE INDEX tasks_request ON tasks (agent, request_id) WHERE request_id <> '';

CREATE TABLE leases (
  id          BLOB    NOT NULL PRIMARY KEY,
  task        BLOB    NOT NULL REFERENCES tasks (id),
  agent       TEXT    NOT NULL,
  role        TEXT    NOT NULL,
  lane        TEXT    NOT NULL,
  request_id  TEXT    NOT NULL,
  state       TEXT    NOT NULL,
  open        INTEGER NOT NULL,
  stuck       INTEGER NOT NULL,
  claim       INTEGER NOT NULL,
  due         INTEGER,
  body        BLOB    NOT NULL
) STRICT;
CREATE INDEX leases_task ON leases (task, open, id);
CREATE INDEX leases_agent ON leases (agent, open, id);
CREATE INDEX leases_due ON leases (lane, due, state, stuck) WHERE due IS NOT NULL;
CREATE INDEX leases_stuck ON leases (id) WHERE stuck = 1;
CREATE UNIQUE INDEX leases_request ON leases (agent, request_id) WHERE request_id <> '';

-- What a person may find somewhere and ask for: public references and parts of handles.
CREATE TABLE lease_refs (
  ref    TEXT NOT NULL,
  lease  BLOB NOT NULL REFERENCES leases (id),
  PRIMARY KEY (ref, lease)
) STRICT, WITHOUT ROWID;

CREATE TABLE resources (
  name    TEXT NOT NULL PRIMARY KEY,
  yaml    TEXT NOT NULL,
  source  TEXT NOT NULL
) STRICT;

-- The audit log. "hashes" are the tlog stored hashes that came with the record, 32 bytes each: its own, then those of the
-- subtrees that it completed.
CREATE TABLE audit_entries (
  idx     INTEGER NOT NULL PRIMARY KEY,
  event   TEXT    NOT NULL,
  task    TEXT    NOT NULL,
  hashes  BLOB    NOT NULL,
  json    BLOB    NOT NULL
) STRICT;
CREATE INDEX audit_entries_task ON audit_entries (task, idx) WHERE task <> '';

CREATE TABLE audit_texts (
  idx    INTEGER NOT NULL,
  field  TEXT    NOT NULL,
  salt   BLOB    NOT NULL,
  text   TEXT    NOT NULL,
  PRIMARY KEY (idx, field)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_head (
  one         INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
  epoch       INTEGER NOT NULL,
  size        INTEGER NOT NULL,
  checkpoint  BLOB
) STRICT;
INSERT INTO audit_head (one, epoch, size, checkpoint) VALUES (1, 1, 0, NULL);
