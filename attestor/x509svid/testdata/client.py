"""A stock grpcio client: takes an X.509-SVID from a Workload API and calls a gRPC health service with it.

usage: client.py WORKLOAD_API_ADDR SERVER_ADDR
"""
import base64
import sys

import grpc


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return value, at


def field(data, number):
    """The first length-delimited field of that number; there are no others in the messages read here."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        size, at = varint(data, at)
        if tag == number << 3 | 2:
            return data[at:at + size]
        at += size
    raise KeyError(number)


def pem(kind, der):
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {kind}-----\n{text}-----END {kind}-----\n".encode()


def pems(kind, ders):
    """Each certificate of a concatenation: a DER sequence with a two-byte length."""
    out = b""
    while ders:
        size = 4 + int.from_bytes(ders[2:4], "big")
        out, ders = out + pem(kind, ders[:size]), ders[size:]
    return out


def main(api, server):
    with grpc.insecure_channel(api) as channel:
        fetch = channel.unary_stream("/SpiffeWorkloadAPI/FetchX509SVID")
        answers = fetch(b"", metadata=[("workload.spiffe.io", "true")], timeout=10)
        svid = field(next(answers), 1)
        answers.cancel()
    credentials = grpc.ssl_channel_credentials(
        root_certificates=pems("CERTIFICATE", field(svid, 4)),
        private_key=pem("PRIVATE KEY", field(svid, 3)),
        certificate_chain=pems("CERTIFICATE", field(svid, 2)),
    )
    with grpc.secure_channel(server, credentials) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        print(field(svid, 1).decode(), check(b"", timeout=10).hex())


main(sys.argv[1], sys.argv[2])
