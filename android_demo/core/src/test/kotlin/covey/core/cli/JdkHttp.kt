package covey.core.cli

import covey.core.client.Answer
import covey.core.client.Http
import covey.core.client.PlatformHttp
import covey.core.client.Request
import java.net.URI
import java.net.http.HttpClient
import java.net.http.HttpRequest
import java.net.http.HttpResponse.BodyHandlers

/**
 * [PlatformHttp], but for PATCH: Android's `HttpURLConnection` knows that method, the JDK's does not, and has another
 * class for it.
 */
class JdkHttp(private val url: String, private val platform: Http = PlatformHttp(url)) : Http by platform {
    private val client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build()

    override fun exchange(request: Request): Answer {
        if (request.method != "PATCH") return platform.exchange(request)
        val patch = HttpRequest.newBuilder(URI(url + request.path)).header("Content-Type", request.contentType)
            .method("PATCH", HttpRequest.BodyPublishers.ofByteArray(request.body))
        for ((name, value) in request.headers) patch.header(name, value)
        val answer = client.send(patch.build(), BodyHandlers.ofByteArray())
        return Answer(answer.statusCode(), answer.headers().map().entries.associate { it.key.lowercase() to it.value.first() }, answer.body())
    }
}
