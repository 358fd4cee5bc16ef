// What a renter signs and hashes, written from docs/protocol.md alone.
import { secp256k1 } from '@noble/curves/secp256k1.js'
import { sha256 } from '@noble/hashes/sha2.js'
import { keccak_256 } from '@noble/hashes/sha3.js'
import { bytesToHex, concatBytes, hexToBytes, utf8ToBytes } from '@noble/hashes/utils.js'
import { base32 } from 'multiformats/bases/base32'
import { peerIdFromString } from '@libp2p/peer-id'

const DOMAIN = 'EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)'

const word = (value) => hexToBytes(BigInt(value).toString(16).padStart(64, '0'))
const hashed = (text) => keccak_256(utf8ToBytes(text))
const addressBytes = (address) => hexToBytes(address.slice(2))

export function domainSeparator (chainId, marketplace) {
  return keccak_256(concatBytes(
    hashed(DOMAIN), hashed('Fabstir'), hashed('1'), word(chainId),
    concatBytes(new Uint8Array(12), addressBytes(marketplace))
  ))
}

function digest (separator, type, ...words) {
  const struct = keccak_256(concatBytes(hashed(type), ...words))
  return keccak_256(concatBytes(Uint8Array.of(0x19, 0x01), separator, struct))
}

export function loginDigest (separator, renterPeerId, hostPeerId, challenge) {
  const type = 'Login(string renterPeerId,string hostPeerId,bytes32 challenge)'
  return digest(separator, type, hashed(renterPeerId), hashed(hostPeerId), challenge)
}

export function receiptDigest (separator, jobId, tokens, runningHash) {
  const type = 'Receipt(uint256 jobId,uint256 tokens,bytes32 runningHash)'
  return digest(separator, type, word(jobId), word(tokens), runningHash)
}

export function capabilityDigest (separator, record) {
  return digest(separator, 'Capability(bytes32 recordHash)', keccak_256(record))
}

// r | s | v with v 27 or 28; noble puts the recovery bit first.
export function sign (privateKey, hash) {
  const made = secp256k1.sign(hash, privateKey, { prehash: false, format: 'recovered' })
  return concatBytes(made.subarray(1), Uint8Array.of(made[0] + 27))
}

export function signerOf (hash, signature) {
  const recovered = concatBytes(Uint8Array.of(signature[64] - 27), signature.subarray(0, 64))
  return addressOf(secp256k1.recoverPublicKey(recovered, hash, { prehash: false }))
}

export function publicKeyOf (privateKey) {
  return secp256k1.getPublicKey(privateKey, true)
}

// EIP-55: a host compares addresses as text.
export function addressOf (publicKey) {
  const point = secp256k1.Point.fromBytes(publicKey).toBytes(false)
  const hex = bytesToHex(keccak_256(point.subarray(1)).subarray(12))
  const capitals = bytesToHex(keccak_256(utf8ToBytes(hex)))
  return '0x' + [...hex].map((c, i) => parseInt(capitals[i], 16) >= 8 ? c.toUpperCase() : c).join('')
}

export function initialHash (chainId, marketplace, jobId) {
  return sha256(concatBytes(
    utf8ToBytes('fabnode/receipt/1'), word(chainId), addressBytes(marketplace), word(jobId)
  ))
}

export function extendHash (running, ids) {
  for (const id of ids) {
    const bytes = new Uint8Array(4)
    new DataView(bytes.buffer).setUint32(0, id)
    running = sha256(concatBytes(running, bytes))
  }
  return running
}

// Ed25519 over a fixed prefix and the record; the peer id holds the key.
export async function isSignedByPeer (peerId, record, signature) {
  const message = Buffer.concat([Buffer.from('fabstir-capability-1:'), record])
  return peerIdFromString(peerId).publicKey.verify(message, signature)
}

// The DHT key of a peer's record.
export function capabilityKey (peerId) {
  const digest = sha256(utf8ToBytes(`fabstir/caps/1/${peerId}`)).subarray(0, 20)
  return utf8ToBytes(`/fabstir/${base32.baseEncode(digest)}`)
}
