// Package stepca is the backend that issues certificates, with smallstep's certificate authority: embedded in this
// process (cas/softcas), or a remote step-ca with a JWK provisioner. Both modes issue the same certificates and are
// held to the same tests.
//
// # What is issued
//
// A certificate's serial number is the lease ID, so a certificate whose answer was lost can still be revoked. Its only
// URI is an SVID of the task trust domain (see TaskURI), its subject is empty but for the common name that the role
// sets, and one non-critical extension says which task and manifest it belongs to (see TaskInfo). NotBefore is a
// minute before the issue, never before the issuing CA's own. step-ca in remote mode adds an extension of its own that
// names the provisioner: it must stay, because disableRenewal depends on it.
//
// # How it ends
//
// By a CRL that the issuing CA signed and that holds the serial. The embedded CA keeps no state but that file,
// DataDir/crl.der: written to a temporary file, synced and renamed before a Revoke returns; signed anew by Run at a
// third of its validity, so every 20 s for 60 s; entries leave it an hour after their certificate has expired. An entry carries its
// certificate's NotAfter in a private extension, and where that was never known stays for the longest life that the CA
// signs. CRL numbers only grow. thisUpdate lies a minute back, for verifiers whose clock is slow.
// While no current CRL can be signed and written, nothing is issued.
//
// When crl.der is missing, damaged or signed by another CA although the CA was used before, what had been revoked
// is lost. The backend then starts with an empty CRL whose number is the Unix time (so it still grows), keeps the
// damaged file aside, logs an error, and Healthy reports ErrMisconfigured until everything that may have been revoked
// has expired. The mark is in the CRL itself and survives restarts. Revoking again what the ledger has as revoked and
// not yet expired mends the list.
//
// # What was signed
//
// DataDir/issued lists it, in both modes: a file for each hour in which certificates end, and in it a line for each, which is on
// disk before the certificate leaves the embedded CA or a step-ca is asked. What cannot be written there is not issued. A file is
// removed an hour after its last certificate has expired. The file since says from when on the list holds everything, where
// that is not from the CA's first certificate on. The list is no part of the ledger and does not go back with it: Issued
// yields what an older copy of the ledger does not know. Of a step-ca whose database can be asked it yields what that holds, too,
// whoever had it signed.
//
// # Trust
//
// The CA that the embedded mode makes is one self-signed root that signs certificates directly: a verifier that wants
// a CRL for each CA of the chain (nginx does) then needs only this one. With an operator's own intermediate the chain
// is leaf and intermediate, and the bundle its roots.
package stepca
