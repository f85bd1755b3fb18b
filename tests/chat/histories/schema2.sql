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
CREATE TABLE logprobs (
        message_id  INTEGER PRIMARY KEY REFERENCES message (id) ON DELETE CASCADE,
        packed      BLOB NOT NULL
    ) STRICT
    ;
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
INSERT INTO logprobs (message_id, packed) VALUES (2, X'000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F202122232425262728292A2B2C2D2E2F303132333435363738393A3B3C3D3E3F404142434445464748494A4B4C4D4E4F505152535455565758595A5B5C5D5E5F606162636465666768696A6B6C6D6E6F707172737475767778797A7B7C7D7E7F808182838485868788898A8B8C8D8E8F909192939495969798999A9B9C9D9E9FA0A1A2A3A4A5A6A7A8A9AAABACADAEAFB0B1B2B3B4B5B6B7B8B9BABBBCBDBEBFC0C1C2C3C4C5C6C7C8C9CACBCCCDCECFD0D1D2D3D4D5D6D7D8D9DADBDCDDDEDFE0E1E2E3E4E5E6E7E8E9EAEBECEDEEEFF0F1F2F3F4F5F6F7F8F9FAFBFCFDFEFF');
PRAGMA user_version = 2;
