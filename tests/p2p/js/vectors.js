// Checks the golden bytes of docs/protocol.md in this language: node vectors.js < vectors.json
import { readFileSync } from 'node:fs'
import { decode as decodeCbor } from 'cborg'
import * as signing from './signing.js'
import { decode, encode } from './wire.js'

const vectors = JSON.parse(readFileSync(0, 'utf8'))
const bytes = (text) => Buffer.from(text.replace(/^0x/, ''), 'hex')
const hex = (data) => Buffer.from(data).toString('hex')
const wrong = []
const check = (name, found, expected) => {
  if (found !== expected) wrong.push(`${name}: ${found}, expected ${expected}`)
}

// Bytes fields are hex in the vectors; what is bytes is known from the name.
const BYTES = new Set(['challenge', 'signature', 'peer_signature', 'running_hash', 'record', 'data'])
const typed = (body) => Object.fromEntries(Object.entries(body).map(
  ([name, value]) => [name, BYTES.has(name) ? bytes(value) : value]
))

for (const { name, body, fields, envelope } of vectors.envelopes) {
  check(name, hex(encode({ [body]: typed(fields) })), envelope)
  check(`${name} kind`, decode(bytes(envelope)).kind, body)
}
const { chain_id: chainId, marketplace, job_id: jobId } = vectors.session
const separator = signing.domainSeparator(chainId, marketplace)
check('domain separator', hex(separator), vectors.domain_separator)
let running = signing.initialHash(chainId, marketplace, jobId)
check('initial hash', hex(running), vectors.running_hashes[0].hash)
for (const { ids, hash } of vectors.running_hashes.slice(1)) {
  running = signing.extendHash(running, ids)
  check(`running hash after ${ids}`, hex(running), hash)
}
const { login, receipt, capability } = vectors.signatures
const digests = {
  login: signing.loginDigest(separator, login.renter_peer_id, login.host_peer_id, bytes(login.challenge)),
  receipt: signing.receiptDigest(separator, jobId, receipt.tokens, bytes(receipt.running_hash)),
  capability: signing.capabilityDigest(separator, bytes(capability.record))
}
for (const [name, digest] of Object.entries(digests)) {
  const { digest: expected, private_key: key, signer, signature } = vectors.signatures[name]
  check(`${name} digest`, hex(digest), expected)
  check(`${name} signature`, hex(signing.sign(bytes(key), digest)), signature)
  check(`${name} signer`, signing.signerOf(digest, bytes(signature)), signer)
}
const told = decodeCbor(bytes(capability.record))
const isPeers = await signing.isSignedByPeer(told.peer_id, bytes(capability.record), bytes(capability.peer_signature))
check('peer signature', isPeers, true)
check('record', JSON.stringify(told.wallet), JSON.stringify(capability.signer))
process.stdout.write(JSON.stringify({ wrong }) + '\n')
process.exitCode = wrong.length === 0 ? 0 : 1
