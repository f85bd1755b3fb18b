CREATE TABLE conversation (
        id          INTEGER PRIMARY KEY,
        title       TEXT NOT NULL,
        model       TEXT,
        system      TEXT,
        created_at  REAL NOT NULL,
        updated_at  REAL NOT NULL,
        leaf_id     INTEGER REFERENCES message (id) ON DELETE SET NULL
    ) STRICT
    ;
CREATE INDEX conversation_by_time ON conversation (updated_at);
CREATE TABLE message (
        id               INTEGER PRIMARY KEY,
        conversation_id  INTEGER NOT NULL REFERENCES conversation (id) ON DELETE CASCADE,
        parent_id        INTEGER REFERENCES message (id) ON DELETE CASCADE,
        role             TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
        content          TEXT NOT NULL,
        state            TEXT NOT NULL CHECK (state IN ('streaming', 'complete', 'stopped', 'failed')),
        writer_pid       INTEGER,
        model            TEXT,
        created_at       REAL NOT NULL,
        meta             TEXT NOT NULL DEFAULT '{}'
    ) STRICT
    ;
CREATE INDEX message_by_parent ON message (parent_id);
CREATE INDEX message_by_conversation ON message (conversation_id);
CREATE VIRTUAL TABLE message_text USING fts5 (
        content, content = 'message', content_rowid = 'id', tokenize = 'trigram'
    );
CREATE TRIGGER message_added AFTER INSERT ON message WHEN new.state <> 'streaming' BEGIN
        INSERT INTO message_text (rowid, content) VALUES (new.id, new.content);
    END;
CREATE TRIGGER message_finished AFTER UPDATE ON message
    WHEN old.state = 'streaming' AND new.state <> 'streaming' BEGIN
        INSERT INTO message_text (rowid, content) VALUES (new.id, new.content);
    END;
CREATE TRIGGER message_edited AFTER UPDATE OF content ON message
    WHEN old.state <> 'streaming' AND new.state <> 'streaming' BEGIN
        INSERT INTO message_text (message_text, rowid, content) VALUES ('delete', old.id, old.content);
        INSERT INTO message_text (rowid, content) VALUES (new.id, new.content);
    END;
CREATE TRIGGER message_removed AFTER DELETE ON message WHEN old.state <> 'streaming' BEGIN
        INSERT INTO message_text (message_text, rowid, content) VALUES ('delete', old.id, old.content);
    END;
INSERT INTO conversation (id, title, model, system, created_at, updated_at, leaf_id) VALUES (1, 'What''s a "quant"?', 'smollm2-135m', 'be brief, it''s late', 1750000000.0, 1750000007.0, 7);
INSERT INTO conversation (id, title, model, system, created_at, updated_at, leaf_id) VALUES (2, 'مرحبا بالعالم', NULL, NULL, 1750000008.0, 1750000009.0, 8);
INSERT INTO conversation (id, title, model, system, created_at, updated_at, leaf_id) VALUES (3, 'empty one', NULL, NULL, 1750000010.0, 1750000010.0, NULL);
INSERT INTO message (id, conversation_id, parent_id, role, content, state, writer_pid, model, created_at, meta) VALUES (1, 1, NULL, 'user', 'What''s a "quant"?
second line', 'complete', NULL, NULL, 1750000001.0, '{}');
INSERT INTO message (id, conversation_id, parent_id, role, content, state, writer_pid, model, created_at, meta) VALUES (2, 1, 1, 'assistant', 'A number with fewer bits; 量化模型。', 'complete', NULL, 'smollm2-135m', 1750000002.0, '{"completion_tokens": 9, "tokens_per_s": 81.5}');
INSERT INTO message (id, conversation_id, parent_id, role, content, state, writer_pid, model, created_at, meta) VALUES (3, 1, 1, 'assistant', 'A person in fin', 'stopped', NULL, 'smollm2-135m', 1750000003.0, '{}');
INSERT INTO message (id, conversation_id, parent_id, role, content, state, writer_pid, model, created_at, meta) VALUES (4, 1, 3, 'user', 'Go on, naïve one 🦊', 'complete', NULL, NULL, 1750000004.0, '{}');
INSERT INTO message (id, conversation_id, parent_id, role, content, state, writer_pid, model, created_at, meta) VALUES (5, 1, 4, 'assistant', '', 'failed', NULL, 'smollm2-135m', 1750000005.0, '{"error": "the server died"}');
INSERT INTO message (id, conversation_id, parent_id, role, content, state, writer_pid, model, created_at, meta) VALUES (6, 1, 2, 'user', 'And 4 bits?', 'complete', NULL, NULL, 1750000006.0, '{}');
INSERT INTO message (id, conversation_id, parent_id, role, content, state, writer_pid, model, created_at, meta) VALUES (7, 1, 6, 'assistant', 'Four bits are half a by', 'streaming', 999999999, 'other', 1750000007.0, '{}');
INSERT INTO message (id, conversation_id, parent_id, role, content, state, writer_pid, model, created_at, meta) VALUES (8, 2, NULL, 'user', 'مرحبا بالعالم', 'complete', NULL, NULL, 1750000009.0, '{}');
PRAGMA user_version = 1;
