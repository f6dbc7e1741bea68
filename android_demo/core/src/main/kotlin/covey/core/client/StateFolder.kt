package covey.core.client

import covey.core.MessageException
import covey.core.Reason
import covey.core.TakenException
import covey.core.UsageException
import covey.core.because
import covey.core.wire.Form
import covey.core.wire.Message
import java.io.Closeable
import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.channels.OverlappingFileLockException
import java.security.MessageDigest

/**
 * What a device remembers, in one folder that survives any kill: a file is written beside the old one, synced and renamed
 * over it, and carries a magic with the format's number and a SHA-256. Held by one process at a time.
 *
 * [syncFolder] makes a rename itself durable: `Os.fsync` on Android, a `FileChannel` on a JVM.
 */
class StateFolder private constructor(val folder: File, private val lock: RandomAccessFile, private val syncFolder: (File) -> Unit) :
    Closeable {
    /** The record in a file, or null; [damaged] hears a sentence where the file is not whole, which is moved aside. */
    fun <M : Message> load(name: String, form: Form<M>, damaged: (String) -> Unit): M? {
        val file = File(folder, name)
        val data = if (file.isFile) file.readBytes() else return null
        val ours = data.size >= HEADER && data.copyOf(MAGIC.size).contentEquals(MAGIC)
        if (ours && data[MAGIC.size] > FORMAT) {
            throw UsageException("$name was written by a newer version of this app: update it, or leave the task and join again").because(Reason.STATE_NEWER)
        }
        try {
            val body = data.copyOfRange(minOf(HEADER, data.size), data.size)
            if (!ours || !digest(body).contentEquals(data.copyOfRange(MAGIC.size + 1, HEADER))) {
                throw MessageException("its digest is wrong")
            }
            return form.fromBytes(body)
        } catch (error: MessageException) {
            file.renameTo(File(folder, "$name.damaged"))
            damaged("$name is damaged (${error.sentence}); it was moved aside, and this device starts afresh")
            return null
        }
    }

    /** Replace a record's file: when this returns, a power cut cannot take it back. */
    fun save(name: String, record: Message) {
        val body = record.toBytes()
        write(name, MAGIC + FORMAT + digest(body) + body)
    }

    /** Drop a record. */
    fun forget(name: String) {
        File(folder, name).delete()
    }

    private fun write(name: String, data: ByteArray) {
        val beside = File(folder, "$name.new")
        try {
            FileOutputStream(beside).use { out ->
                out.write(data)
                out.fd.sync()
            }
            if (!beside.renameTo(File(folder, name))) throw IOException("it cannot be renamed")
            syncFolder(folder)
        } catch (error: IOException) {
            beside.delete()
            throw UsageException(
                "$name cannot be written (${data.size} bytes: ${error.message}): what was saved before is kept; free some " +
                    "space and go on",
            ).because(Reason.DISK, name)
        }
    }

    /** Let another process have the folder. */
    override fun close() = lock.close()

    companion object {
        private val MAGIC = "COVEYKT".toByteArray()
        private const val FORMAT: Byte = 1
        private val HEADER = MAGIC.size + 1 + 32

        /** Make the folder if needed and hold it for this process alone. */
        fun open(folder: File, syncFolder: (File) -> Unit = {}): StateFolder {
            if (!folder.isDirectory && !folder.mkdirs()) throw UsageException("$folder cannot be made: choose another place")
            val lock = RandomAccessFile(File(folder, "lock"), "rw")
            val taken = try {
                lock.channel.tryLock() == null
            } catch (_: OverlappingFileLockException) {
                true
            }
            if (taken) {
                lock.close()
                throw TakenException("another client uses $folder: one at a time")
            }
            return StateFolder(folder, lock, syncFolder)
        }

        private fun digest(body: ByteArray): ByteArray = MessageDigest.getInstance("SHA-256").digest(body)
    }
}
