package covey.core.client

import covey.core.Reason
import covey.core.RefusedException
import covey.core.ServerException
import covey.core.UsageException
import covey.core.because
import covey.core.model.floatsOf

/** This device's own tensors in its vault at the server, and brought back on a new device. */
class Backup(private val calls: Calls, private val vault: Vault) {
    private val address: String by lazy(vault::address)

    /**
     * What the record has, else the vault's content; throws [ServerException] for a vault that does not fit or open, and
     * [UsageException] where there is none though one is [expected].
     */
    fun restore(device: Device, record: ClientRecord, expected: Boolean = false): ClientRecord {
        val size = 4 * device.ownSize
        if (record.own.isNotEmpty() || size == 0) return record
        val sealed = try {
            calls.vault(address, Vault.sealedSize(size))
        } catch (error: RefusedException) {
            if (error.status != 404) throw error
            if (expected) throw UsageException("the server has no vault of this task that this passphrase finds").because(Reason.VAULT)
            return record
        }
        val content = vault.open(sealed).content
        if (content.size != size || !floatsOf(content).all { it.isFinite() }) {
            throw ServerException("the vault holds ${content.size} bytes, this task's own tensors have $size")
        }
        return record.copy(own = content)
    }

    /** Put what the record has into the vault, in the place of what was there. */
    fun store(record: ClientRecord) {
        if (record.own.isNotEmpty()) calls.keepVault(address, vault.seal(Kept(record.own, record.rounds.toLong())))
    }

    /** Delete what is there. */
    fun forget() = calls.deleteVault(address)
}
