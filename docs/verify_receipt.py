#!/usr/bin/env python3
"""Verify a Stint receipt without Stint: python3 verify_receipt.py RECEIPT VERIFIER_KEY

Needs Python 3.8 and, for the Ed25519 signature, the openssl command (1.1.1 or later). docs/receipts.md says what is done here and why.
"""
import base64, hashlib, hmac, json, os, subprocess, sys, tempfile


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def ed25519(public, message, signature):
    """Let openssl verify; the DER prefix is that of an Ed25519 SubjectPublicKeyInfo (RFC 8410)."""
    with tempfile.TemporaryDirectory() as d:
        files = {"key": bytes.fromhex("302a300506032b6570032100") + public, "message": message, "signature": signature}
        for name, content in files.items():
            with open(os.path.join(d, name), "wb") as f:
                f.write(content)
        run = subprocess.run(["openssl", "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", "key", "-rawin", "-in", "message",
                              "-sigfile", "signature"], cwd=d, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return run.returncode == 0


def checkpoint(note, vkey):
    """C2SP signed-note and tlog-checkpoint: return size and root of the log named by the key."""
    name, key_hash, key = vkey.split("+", 2)
    key = base64.b64decode(key)
    assert key[0] == 1 and sha(name.encode(), b"\n", key)[:4].hex() == key_hash, "not an Ed25519 verifier key"
    text, signatures = note.rsplit("\n\n", 1)
    text += "\n"
    for line in signatures.splitlines():
        dash, signer, raw = line.split(" ")
        raw = base64.b64decode(raw)
        if dash == "\u2014" and signer == name and raw[:4].hex() == key_hash:
            assert ed25519(key[1:], text.encode(), raw[4:]), "the checkpoint's signature is wrong"
            origin, size, root = text.splitlines()[:3]
            assert origin == name, "the checkpoint is of another log"
            return int(size), base64.b64decode(root)
    raise AssertionError("the checkpoint is not signed by this key")


def root_from(index, size, leaf, proof):
    """RFC 9162 section 2.1.3.2 (the same proofs as RFC 6962)."""
    assert index < size
    fn, sn, r = index, size - 1, leaf
    for p in proof:
        assert sn, "the proof is too long"
        if fn & 1 or fn == sn:
            r = sha(b"\x01", p, r)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = sha(b"\x01", r, p)
        fn, sn = fn >> 1, sn >> 1
    assert sn == 0, "the proof is too short"
    return r


def main(path, vkey):
    with open(path, encoding="utf-8") as f:
        receipt = json.load(f)
    assert receipt["format"] == "stint-receipt/1"
    size, root = checkpoint(receipt["checkpoint"], vkey)
    for rec in receipt["records"]:
        leaf = sha(b"\x00", rec["json"].encode())
        proof = [base64.b64decode(p) for p in rec["proof"]]
        assert root_from(rec["index"], size, leaf, proof) == root, f"record {rec['index']} is not in the log"
        record = json.loads(rec["json"])
        assert record["task"] == receipt["task"], f"record {rec['index']} is of another task"
        for t in rec.get("texts", []):
            hashed = hmac.new(base64.b64decode(t["salt"]), t["text"].encode(), "sha256").hexdigest()
            assert hashed == record["hashes"][t["field"]], f"a text of record {rec['index']} was changed"
        print(rec["index"], record["time"], record["event"], record.get("lease", ""), record.get("proof", {}).get("kind", ""))
    print(f"{len(receipt['records'])} records are in the log of {size} that {vkey.split('+')[0]} signed")


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2])
    except (AssertionError, KeyError, ValueError) as e:
        sys.exit(f"does not verify: {e}")
