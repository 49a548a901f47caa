#!/bin/sh
# Start SeaweedFS so that S3, with its credentials, is the only way in. Arguments go to `weed mini`.
#
# The servers behind its S3 server know nothing of S3's credentials. security.toml closes them; without it, or without the
# identity that it names, SeaweedFS would start and be open to anybody. So a missing piece ends this script first.
#
# S3_IDENTITY_KEY holds a private key and its certificate (PEM, in base64). The current folder must be this server's alone:
# the identity and the sockets are written to it.
set -eu
umask 077

settings=$(dirname "$0")
test -r "$settings/security.toml"
printf %s "${S3_IDENTITY_KEY:?run \"make env\"}" | base64 -d > identity.pem
grep -q "BEGIN CERTIFICATE" identity.pem
unset S3_IDENTITY_KEY

# Tokens for the HTTP ports. Nobody but this process needs them, so each start makes new ones.
for token in SIGNING SIGNING_READ FILER_SIGNING FILER_SIGNING_READ; do
  key=$(head -c 32 /dev/urandom | base64)
  test ${#key} -ge 40
  export "WEED_JWT_${token}_KEY=$key"
done

# Logs go to standard error alone, and two sockets into the current folder, by relative names: a whole path may be too long.
# Those of gRPC are always in /tmp, which the umask closes to other users.
exec weed -logtostderr -config_dir="$settings" mini \
  -disableHttp -s3.allowedOrigins= -master.telemetry=false \
  -admin.ui=false -webdav=false -s3.port.iceberg=0 -s3.port.lance=0 \
  -s3.localSocket=s3.sock -filer.localSocket=filer.sock \
  "$@"
