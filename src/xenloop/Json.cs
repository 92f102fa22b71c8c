using System.Text.Json;

namespace XenLoop.Command;

/// <summary>Reads the daemon's answers: a member that an older daemon does not write is as if it were empty.</summary>
internal static class Json
{
    extension(JsonElement element)
    {
        /// <summary>Null where there is none.</summary>
        public string? Text(string name) =>
            element.TryGetProperty(name, out JsonElement member) && member.ValueKind == JsonValueKind.String ? member.GetString() : null;

        /// <summary>0 where there is none.</summary>
        public double Number(string name) =>
            element.TryGetProperty(name, out JsonElement member) && member.ValueKind == JsonValueKind.Number ? member.GetDouble() : 0;

        public int Whole(string name) => (int)element.Number(name);

        /// <summary>False where there is none.</summary>
        public bool Flag(string name) => element.TryGetProperty(name, out JsonElement member) && member.ValueKind == JsonValueKind.True;

        public bool Has(string name) => element.TryGetProperty(name, out JsonElement member) && member.ValueKind != JsonValueKind.Null;

        /// <summary>None where there is no such array.</summary>
        public IEnumerable<JsonElement> Items(string name) =>
            element.TryGetProperty(name, out JsonElement member) && member.ValueKind == JsonValueKind.Array ? member.EnumerateArray() : [];

        /// <summary>None where there is no such object.</summary>
        public IEnumerable<JsonProperty> Members(string name) =>
            element.TryGetProperty(name, out JsonElement member) && member.ValueKind == JsonValueKind.Object ? member.EnumerateObject() : [];
    }
}
