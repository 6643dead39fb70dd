#!/usr/bin/env python3
"""An independent restorer for Sealift's storage format 1, written from docs/format.md alone.

Reads a copy of a bucket prefix in a directory, verifies everything the page asks for, lists the backups, and writes the
streams of one. Needs the packages in requirements.txt, stock `age`, and format.proto (found in the source tree).

    restore.py BUCKET --root-key-sha256 HEX                                            list backups
    restore.py BUCKET --root-key-sha256 HEX --identity KEY --series ID [--backup ID] --to DIR
"""
import argparse, hashlib, pathlib, re, struct, subprocess, sys, tempfile, uuid

import blake3, zstandard
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto/sealift/format/v1/format.proto"
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Refused(Exception):
    """Something does not hold; not one byte of it is used."""


def need(condition, problem):
    if not condition:
        raise Refused(problem)


def load_schema():
    with tempfile.NamedTemporaryFile() as out:
        need(protoc.main(["protoc", f"-I{PROTO.parent}", f"--descriptor_set_out={out.name}", str(PROTO)]) == 0, "format.proto does not compile")
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return {name.rsplit(".", 1)[-1]: cls for name, cls in message_factory.GetMessageClassesForFiles([f.name for f in files.file], pool).items()}


SCHEMA = load_schema()


def decode(kind, data, what):
    try:
        message = SCHEMA[kind].FromString(data)
    except DecodeError as error:
        raise Refused(f"{what}: not a {kind}: {error}")
    need(not getattr(message, "required_features", None), f"{what}: requires features that this restorer does not have")
    return message


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def hkdf(ikm, salt, info):
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(ikm)


def unseal(key, nonce, aad, sealed, what):
    try:
        return AESGCM(key).decrypt(nonce, sealed, aad)
    except InvalidTag:
        raise Refused(f"{what}: does not decrypt")


def unzstd(data, cap, what):
    try:
        need(zstandard.frame_content_size(data) <= cap, f"{what}: decompresses to more than {cap} bytes")
        return zstandard.ZstdDecompressor(max_window_size=16 * MIB).decompress(data, max_output_size=cap)
    except zstandard.ZstdError as error:
        raise Refused(f"{what}: {error}")


def signed(key, context, signature, *digests):
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, context + b"\0" + b"".join(digests))
        return True
    except (InvalidSignature, ValueError):
        return False


def take(data, magic, caps, what):
    """The parts after a magic, and the bytes after them."""
    need(data.startswith(magic), f"{what}: does not start with {magic.decode()}")
    at, parts = len(magic), []
    for cap in caps:
        need(len(data) >= at + 4, f"{what}: truncated")
        (length,) = struct.unpack_from("<I", data, at)
        need(length <= cap and at + 4 + length <= len(data), f"{what}: a part is too long")
        parts.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return parts, data[at:]


class Bucket:
    def __init__(self, root):
        self.root = pathlib.Path(root)

    def names(self, prefix):
        base = self.root / prefix
        return sorted(str(path.relative_to(self.root)) for path in base.rglob("*") if path.is_file()) if base.is_dir() else []

    def read(self, name):
        """The object's bytes, if they hash to the name."""
        try:
            data = (self.root / name).read_bytes()
        except OSError as error:
            raise Refused(f"{name}: {error.strerror}")
        need(hashlib.sha256(data).hexdigest() == name[-64:], f"{name}: its bytes do not hash to its name")
        return data


def trust_policy(bucket, pinned):
    """The newest policy of the chain that starts at the first object signed by the pinned key."""
    state, threshold, keys, previous = None, 1, None, None
    for name in bucket.names("trust"):
        match = re.fullmatch(r"trust/(\d{10})-[0-9a-f]{64}", name)
        need(match, f"{name}: not the name of a trust policy")
        data = bucket.read(name)
        (body, signatures), rest = take(data, b"SLFTTRU1", [16 * MIB, 64 * KIB], name)
        need(not rest, f"{name}: bytes after its end")
        policy, digest = decode("TrustPolicy", body, name), sha256(data[: 12 + len(body)])
        good = {s.key for s in decode("Signatures", signatures, name).signatures if signed(s.key, b"sealift/1/trust", s.signature, digest)}
        good = {key for key in good if (key in keys if keys else sha256(key) == pinned)}
        need(policy.version == int(match[1]) >= 1, f"{name}: is version {policy.version}")
        need((policy.version == 1) == (policy.previous_sha256 == b""), f"{name}: names no version before, or is the first")
        if state is None and not good:
            continue
        need(len(good) >= threshold, f"{name}: not signed by the root keys in force")
        if state is not None:
            need(policy.version == state.version + 1 and policy.previous_sha256 == sha256(previous), f"{name}: does not follow from version {state.version}")
            need(policy.repository_id == state.repository_id, f"{name}: of another repository")
        for rule in policy.rules:
            need(rule.recipients and all(r.kind == 1 for r in rule.recipients), f"{name}: a rule without recipients, or of an unknown kind")
        if policy.next_root_keys:
            keys, threshold = set(policy.next_root_keys), policy.next_threshold
            need(1 <= threshold <= len(keys) == len(policy.next_root_keys), f"{name}: its next root keys cannot sign")
        state, previous = policy, data
    need(state is not None, "no trust policy is signed by the root key given")
    return state


def standing(bucket, policy, agent, key):
    """attested, continuous or unknown: how far a signing key is to be believed."""
    attested = {a.signing_key for a in policy.agents if a.agent_id == agent}
    if key in attested:
        return "attested"
    objects = []
    for name in bucket.names(f"agents/{uuid.UUID(bytes=agent)}"):
        data = bucket.read(name)
        (body,), signature = take(data, b"SLFTAGK1", [4 * KIB], name)
        entry = decode("AgentKey", body, name)
        need(len(signature) == 64 and entry.agent_id == agent, f"{name}: of another agent, or truncated")
        objects.append((name, entry.signing_key, signature, sha256(data[: 12 + len(body)])))
    signs = lambda by, o: signed(by, b"sealift/1/agent-key", o[2], o[3])
    for o in objects:
        need(any(signs(by[1], o) for by in objects), f"{o[0]}: signed by no key of its agent")
    first = [o[1] for o in objects if signs(o[1], o)]
    believed = attested | (set(first) if len(first) == 1 else set())
    while more := {o[1] for o in objects if o[1] not in believed and any(signs(by, o) for by in believed)}:
        believed |= more
    return "continuous" if key in believed else "unknown"


class Manifest:
    def __init__(self, bucket, policy, name):
        match = re.fullmatch(r"series/([0-9a-f-]{36})/manifests/(\d{20})-[0-9a-f]{64}", name)
        need(match, f"{name}: not the name of a manifest")
        (public, self.slots, self.sealed), signature = take(bucket.read(name), b"SLFTMAN1", [64 * MIB, 64 * KIB, GIB], name)
        need(len(signature) == 64, f"{name}: bytes after its end, or truncated")
        self.name, self.public, self.digests = name, decode("ManifestPublic", public, name), (sha256(public), sha256(self.slots))
        need(self.public.repository_id == policy.repository_id, f"{name}: of another repository")
        need(self.public.series_id == uuid.UUID(match[1]).bytes, f"{name}: of another series")
        need(self.public.sequence == int(match[2]) >= 1, f"{name}: has sequence {self.public.sequence}")
        need(self.public.status in (1, 2), f"{name}: unknown status")
        need(len({p.sha256 for p in self.public.packs}) == len(self.public.packs), f"{name}: names a pack twice")
        need(signed(self.public.signing_key, b"sealift/1/manifest", signature, *self.digests, sha256(self.sealed)), f"{name}: its signature does not hold")
        self.standing = standing(bucket, policy, self.public.agent_id, self.public.signing_key)

    def content(self, keys):
        p = self.public
        slots = decode("KeySlots", self.slots, self.name).slots
        key = keys.open(slots, p.series_id, p.backup_id, p.seal_id, p.key_commitment, self.name)
        plain = unseal(hkdf(key, self.digests[0], b"sealift/1/manifest"), bytes(12), b"".join(self.digests) + b"\x04", self.sealed, self.name)
        content = decode("SealedManifest", unzstd(plain, GIB, self.name), self.name)
        names = [stream.name for stream in content.streams]
        need(len(set(names)) == len(names), f"{self.name}: two streams of one name")
        for s in content.streams:
            good = 1 <= len(s.name.encode()) <= 1024 and not re.search(r"[\x00-\x1f\x7f-\x9f]", s.name) and not {"", ".", ".."} & set(s.name.split("/"))
            need(good and s.kind in (1, 2, 3) and s.outcome in (1, 2, 3), f"{self.name}: stream {s.name!r} is malformed")
            for e in s.extents:
                need(e.pack < len(p.packs) and 0 < e.raw_len and e.raw_offset + e.raw_len <= GIB, f"{self.name}: stream {s.name!r} has a bad extent")
            need(sum(e.raw_len for e in s.extents) == s.raw_len, f"{self.name}: stream {s.name!r} is not as long as its extents")
        need(sum(s.raw_len for s in content.streams) == p.raw_bytes, f"{self.name}: its streams are not as long as it says")
        return content


class Keys:
    """Opens slots with stock age. A key counts only if the commitment says so."""

    def __init__(self, bucket, repository, identity):
        self.bucket, self.repository, self.identity, self.known = bucket, repository, identity, {}

    def open(self, slots, series, backup, commit_id, commitment, what):
        commits = lambda key: hkdf(key, commit_id, b"sealift/1/commitment") == commitment
        if backup in self.known and commits(self.known[backup]):
            return self.known[backup]
        need(any(slot.kind == 1 for slot in slots), f"{what}: no slot of a known kind")
        slots = list(slots)
        for name in self.bucket.names(f"series/{uuid.UUID(bytes=series)}/slots/{uuid.UUID(bytes=backup)}"):
            slots += decode("KeySlots", self.bucket.read(name), name).slots
        for slot in slots:
            opened = slot.kind == 1 and subprocess.run(["age", "-d", "-i", self.identity], input=slot.envelope, capture_output=True)
            if not opened or opened.returncode != 0:
                continue
            e = decode("DataKeyEnvelope", opened.stdout, what)
            if (e.repository_id, e.series_id, e.backup_id, len(e.data_key)) == (self.repository, series, backup, 32) and commits(e.data_key):
                self.known[backup] = e.data_key
                return e.data_key
        raise Refused(f"{what}: this identity opens no slot with the key it was sealed under")


class Pack:
    def __init__(self, bucket, public, ref, keys):
        p, self.name = public, f"series/{uuid.UUID(bytes=public.series_id)}/packs/{ref.sha256.hex()}"
        self.data = data = bucket.read(self.name)
        need(len(data) == ref.size <= 64 * MIB and data[:8] == b"SLFTPAK1" and data[-8:] == b"SLFTEND1", f"{self.name}: not a pack of this size")
        lengths = struct.unpack("<III", data[-20:-8])
        need(lengths == (ref.index_len, ref.directory_len, ref.header_len), f"{self.name}: not the lengths that the manifest names")
        need(all(have <= cap for have, cap in zip(lengths, (16 * MIB, MIB, 64 * KIB))), f"{self.name}: a part is too long")
        header_at = len(data) - 20 - ref.header_len
        directory_at, header_bytes = header_at - ref.directory_len, data[header_at:-20]
        frames_end = directory_at - ref.index_len
        need(frames_end > 8 and sha256(header_bytes, data[directory_at:header_at]) == ref.meta_sha256, f"{self.name}: its header or directory was altered")
        header = decode("PackHeader", header_bytes, self.name)
        need((header.repository_id, header.series_id, header.backup_id) == (p.repository_id, p.series_id, ref.origin_backup), f"{self.name}: belongs elsewhere")
        need(header.aead == 1, f"{self.name}: unknown AEAD")
        data_key = keys.open(header.slots, p.series_id, ref.origin_backup, header.pack_id, header.key_commitment, self.name)
        self.key, self.header_hash = hkdf(data_key, header.pack_id, b"sealift/1/pack" + p.repository_id + p.series_id), sha256(header_bytes)
        directory = unseal(self.key, b"\xff" * 4 + bytes(8), self.header_hash + b"\x02", data[directory_at:header_at], self.name)
        self.frames, at, raw = [], 8, 0
        for f in decode("PackDirectory", directory, self.name).frames:
            need(f.codec in (1, 2) and f.stored_len > 16 and 0 < f.raw_len <= 16 * MIB, f"{self.name}: bad directory")
            self.frames.append((at, f.stored_len, raw, f.raw_len, f.codec))
            at, raw = at + f.stored_len, raw + f.raw_len
        need(at == frames_end and raw <= GIB, f"{self.name}: its directory does not add up")
        self.cache = {}

    def frame(self, i):
        if i not in self.cache:
            at, stored_len, _, raw_len, codec = self.frames[i]
            number, what = struct.pack(">Q", i), f"{self.name}: frame {i}"
            plain = unseal(self.key, bytes(4) + number, self.header_hash + b"\x01" + number, self.data[at : at + stored_len], what)
            self.cache[i] = unzstd(plain, raw_len, what) if codec == 2 else plain
            need(len(self.cache[i]) == raw_len, f"{what}: not as long as it should be")
        return self.cache[i]

    def read(self, offset, length):
        need(self.frames and offset + length <= self.frames[-1][2] + self.frames[-1][3], f"{self.name}: an extent reaches beyond its end")
        for i, (_, _, raw, raw_len, _) in enumerate(self.frames):
            if raw < offset + length and offset < raw + raw_len:
                yield self.frame(i)[max(offset - raw, 0) : offset + length - raw]


def restore(bucket, manifest, keys, to, accept_partial):
    content, packs = manifest.content(keys), {}
    for stream in content.streams:
        need(stream.outcome == 1 or accept_partial, f"stream {stream.name!r} is not complete; --partial restores it all the same")
        target, digest, length = pathlib.Path(to) / stream.name, blake3.blake3(), 0
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".unverified")
        with open(temporary, "wb") as out:
            for e in stream.extents:
                if e.pack not in packs:
                    packs = dict(list(packs.items())[-7:])  # eight packs at most in memory
                    packs[e.pack] = Pack(bucket, manifest.public, manifest.public.packs[e.pack], keys)
                for piece in packs[e.pack].read(e.raw_offset, e.raw_len):
                    digest.update(piece)
                    length += out.write(piece)
        need(length == stream.raw_len and digest.digest() == stream.blake3, f"stream {stream.name!r} is not what was backed up")
        temporary.rename(target)
        print(f"restored\t{stream.name}\t{length}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bucket")
    parser.add_argument("--root-key-sha256", required=True, type=bytes.fromhex)
    parser.add_argument("--identity")
    parser.add_argument("--series", type=uuid.UUID)
    parser.add_argument("--backup", type=uuid.UUID, help="default: the newest")
    parser.add_argument("--to")
    parser.add_argument("--accept-unknown-key", action="store_true", help="believe manifests whose signing key nothing vouches for")
    parser.add_argument("--partial", action="store_true")
    args = parser.parse_args()
    bucket = Bucket(args.bucket)
    policy = trust_policy(bucket, args.root_key_sha256)
    names = [n for n in bucket.names(f"series/{args.series}" if args.series else "series") if n.split("/")[2] == "manifests"]
    manifests = [Manifest(bucket, policy, name) for name in names]
    for m in manifests:
        need(m.standing != "unknown" or args.accept_unknown_key, f"{m.name}: nothing vouches for the key that signed it")
    chosen = [m for m in manifests if args.backup in (None, uuid.UUID(bytes=m.public.backup_id))]
    if args.to is None:
        for m in chosen:
            p = m.public
            print(f"{uuid.UUID(bytes=p.series_id)}\t{p.sequence}\t{uuid.UUID(bytes=p.backup_id)}\t{p.created_ms}\t{p.raw_bytes}\t{'complete' if p.status == 1 else 'partial'}\t{m.standing}")
        return
    need(chosen and args.identity, "no such backup, or no --identity")
    need(len({m.public.series_id for m in chosen}) == 1, "there are several series: choose one with --series")
    newest = [m for m in chosen if m.public.sequence == chosen[-1].public.sequence]
    need(len(newest) == 1, "two manifests of one sequence: choose with --backup")
    restore(bucket, newest[0], Keys(bucket, policy.repository_id, args.identity), args.to, args.partial)


if __name__ == "__main__":
    try:
        main()
    except Refused as refused:
        sys.exit(f"refused: {refused}")
